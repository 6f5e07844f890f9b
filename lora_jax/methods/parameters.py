"""LoRA of parameters that no layer of the model contracts; see `low_rank.parameters`."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import patterns, surgery
from lora_jax.errors import InputError
from lora_jax.low_rank import limits
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.parameters import AdaptedParameter, adapt_parameter
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.sharing import shared_variables
from lora_jax.low_rank.weights import WeightView
from lora_jax.method import Around, Insertion
from lora_jax.methods.chosen_layers import Choice, ChosenLayer, row
from lora_jax.methods.rates import faster_b
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
        modules = surgery.pretrained_modules(model)
        parameters = surgery.parameters_of(modules)
        chosen = self._choose(parameters).layers
        for held in shared_variables(modules):
            names = sorted(name.removeprefix("/") for _, name in held)
            if not chosen.keys().isdisjoint(names):
                raise InputError(
                    f"{' and '.join(names)} are one Variable, which cannot have separate updates"
                )
        for path, parameter in chosen.items():
            parameter_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            assert isinstance(parameter.settings, LoRASettings)
            adapt_parameter(*parameters[path], parameter.settings, parameter_key, path)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapted parameter."""
        adapted, chosen = adapted_layers(model), self._chosen_in(model).layers
        return [row(path, adapted[path], own) for path, own in chosen.items() if path in adapted]

    def skipped(self, model: nnx.Module) -> list[SkippedLayer]:
        """One row per parameter that a target names and that has no update."""
        return self._chosen_in(model).skipped

    def around(self, model: nnx.Module, updates: int | None) -> Around | None:
        """LoRA+: the updates of B are larger than those of A."""
        return faster_b(self._chosen_in(model).layers, model)

    def _chosen_in(self, model: nnx.Module) -> Choice:
        return self._choose(surgery.parameters_of(surgery.pretrained_modules(model)))

    def _choose(self, parameters: Mapping[str, tuple[nnx.Module, str]]) -> Choice:
        ordered = [
            patterns.Ordered(
                "target", name, settings, patterns.matching(name, list(parameters), "target")
            )
            for name, settings in self.targets
        ]
        choice = Choice({}, [])
        for path, owner in patterns.first_matches(ordered).items():
            target, wanted = owner.pattern, owner.outcome
            parameter = AdaptedParameter(*parameters[path], wanted.axes)
            fitted = wanted
            if len(parameter.weight_shape()) >= parameter.roles().ndim:
                limit = limits.rank_limit_of(WeightView(parameter), wanted, path)
                fitted = wanted.fitted(limit, path)
            # else `adapt_parameter` refuses it
            if isinstance(fitted, str):
                choice.skipped.append(SkippedLayer(target, path, fitted))
            else:
                choice.layers[path] = ChosenLayer(target, fitted, wanted.rank)
        return choice
