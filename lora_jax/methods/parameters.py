"""LoRA of parameters that no layer of the model contracts; see `low_rank.parameters`."""

from __future__ import annotations

import dataclasses
import zlib

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition, patterns, surgery
from lora_jax.low_rank import limits
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.parameters import AdaptedParameter, adapt_parameter
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.weights import WeightView
from lora_jax.method import Insertion
from lora_jax.summary import MatchedLayer, SkippedLayer


@dataclasses.dataclass(frozen=True)
class ParameterInsertion(Insertion):
    """Adapts the parameters whose paths its targets name; the first match wins.

    Attributes:
      targets: patterns of whole paths of parameters, or the ends of paths, with the settings.
    """

    targets: tuple[tuple[str, LoRASettings], ...]

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Gives the parameters their updates, in place."""
        parameters = _parameters(model)
        for path, (_, settings, reason) in self._choose(parameters).items():
            if reason is None:
                module, name = parameters[path]
                shared = [
                    other for other, held in parameters.items() if _is_same(held, module, name)
                ]
                if len(shared) > 1:
                    raise ValueError(
                        f"{' and '.join(sorted(shared))} are one Variable, which cannot have separate "
                        "updates"
                    )
                parameter_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
                adapt_parameter(module, name, settings, parameter_key, path)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapted parameter."""
        adapted = adapted_layers(model)
        return [
            MatchedLayer(
                rule=target,
                path=path,
                shape=adapted[path].weight_shape(),
                how=str(settings),
                parameters=partition.count(partition.parameters(adapted[path].lora)),
                rank=settings.rank,
                parts=settings.parts,
            )
            for path, (target, settings, reason) in self._choose(_parameters(model)).items()
            if reason is None and path in adapted
        ]

    def skipped(self, model: nnx.Module) -> list[SkippedLayer]:
        """One row per parameter that a target names and that has no update."""
        chosen = self._choose(_parameters(model))
        return [
            SkippedLayer(target, path, reason)
            for path, (target, _, reason) in chosen.items()
            if reason
        ]

    def _choose(
        self, parameters: dict[str, tuple[nnx.Module, str]]
    ) -> dict[str, tuple[str, LoRASettings, str | None]]:
        """The target and settings of every named parameter, and why it is skipped, if it is."""
        ordered = [
            patterns.Ordered(
                "target", name, settings, patterns.matching(name, list(parameters), "target")
            )
            for name, settings in self.targets
        ]
        chosen: dict[str, tuple[str, LoRASettings, str | None]] = {}
        for path, owner in patterns.first_matches(ordered).items():
            settings, reason = owner.outcome, None
            parameter = AdaptedParameter(*parameters[path], settings.axes)
            if (
                len(parameter.weight_shape()) >= parameter.roles().ndim
            ):  # else `adapt_parameter` refuses
                limit = limits.rank_limit_of(WeightView(parameter), settings, path)
                fitted = settings.fitted(limit, path)
                settings, reason = (settings, fitted) if isinstance(fitted, str) else (fitted, None)
            chosen[path] = (owner.pattern, settings, reason)
        return chosen


def _parameters(model: nnx.Module) -> dict[str, tuple[nnx.Module, str]]:
    """Every pre-trained parameter of a model by path: the module that holds it, and its name there."""
    return {
        f"{path}/{name}".removeprefix("/"): (module, name)
        for path, module in surgery.pretrained_modules(model).items()
        for name, value in vars(module).items()
        if isinstance(value, nnx.Param)
    }


def _is_same(held: tuple[nnx.Module, str], module: nnx.Module, name: str) -> bool:
    return vars(held[0])[held[1]] is vars(module)[name]
