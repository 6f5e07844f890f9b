"""LoRA (Hu et al. 2021): low-rank updates of the layers that regular expressions name."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition
from lora_jax.checks import Integer, Real
from lora_jax.low_rank import flax_layers as _flax_layers  # noqa: F401 - registers Flax's layers
from lora_jax.low_rank.contraction import Init, Scaling
from lora_jax.low_rank.layers import adapt, adapted_layers
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.method import Insertion, Method
from lora_jax.methods import common
from lora_jax.partition import Rule
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import pretrained_modules


@dataclasses.dataclass(frozen=True)
class LoRAInsertion(Insertion):
    """Adapts every layer whose path matches one of the targets; the first match wins.

    Attributes:
      targets: pairs of a regular expression for whole paths, and the settings of its layers.
    """

    targets: tuple[tuple[str, LoRASettings], ...]

    def settings_of(self, paths: Sequence[str]) -> dict[str, tuple[str, LoRASettings]]:
        """The matching paths with their pattern and settings.

        Raises:
          ValueError: a pattern matches no path.
        """
        for pattern, _ in self.targets:
            if not any(re.fullmatch(pattern, path) for path in paths):
                raise partition.no_match_error("target", pattern, paths)
        first = {
            path: next((target for target in self.targets if re.fullmatch(target[0], path)), None)
            for path in paths
        }
        return {path: target for path, target in first.items() if target is not None}

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Turns the matched layers into their LoRA layers, in place."""
        modules = pretrained_modules(model)
        settings = self.settings_of(list(modules))
        _refuse_shared_weights(modules, settings)
        for path, (_, layer_settings) in settings.items():
            layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            adapt(modules[path], layer_settings, layer_key, path)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapted layer."""
        layers = adapted_layers(model)
        return [
            MatchedLayer(
                rule=pattern,
                path=path,
                shape=layers[path].weight_shape(),
                how=str(settings),
                parameters=partition.count(partition.parameters(layers[path].lora)),
                rank=settings.rank,
                parts=settings.parts,
            )
            for path, (pattern, settings) in self.settings_of(list(layers)).items()
        ]


def _refuse_shared_weights(modules: Mapping[str, nnx.Module], targets: Mapping[str, Any]) -> None:
    """A Variable that two layers share would be merged twice; a layer used twice is fine."""
    owners: dict[int, list[str]] = {}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if isinstance(value, nnx.Variable):
                owners.setdefault(id(value), []).append(f"{path}/{name}")
    for shared in owners.values():
        if len(shared) > 1 and any(name.rpartition("/")[0] in targets for name in shared):
            raise ValueError(
                f"{' and '.join(sorted(shared))} are one Variable, so their layers cannot have "
                "separate updates; share the whole layer instead of its weight"
            )


Targets = str | Sequence[str] | Mapping[str, Mapping[str, Any]]


def by_target(targets: Targets) -> dict[str, Mapping[str, Any]]:
    """The arguments of each target alone, by its pattern; `targets` as of `lora`."""
    if isinstance(targets, Mapping):
        return dict(targets)
    return {pattern: {} for pattern in ([targets] if isinstance(targets, str) else targets)}


def lora(
    targets: Targets,
    *,
    rank: Integer = 8,
    alpha: Real | None = None,
    scaling: Scaling = "alpha/r",
    init: Init = "kaiming",
    std: Real = 0.02,
    dropout: Real = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    magnitude: bool = False,
    bias: Literal["none", "all", "lora_only"] = "none",
    head: str | None = None,
) -> Method:
    """LoRA (Hu et al. 2021, section 4.1). Groups: `lora`, and `bias` and `head` if asked for.

    Args:
      targets: regular expressions for the whole paths of the layers to adapt. A mapping gives
        arguments per expression that replace those below:
        `{".*/qkv": {"rank": 4, "parts": ("q", "v"), "fused": ("q", "k", "v")}, ".*/output": {}}`.
      rank: r, per matrix, and per part of a fused one.
      alpha: the constant of section 4.1; the default is the rank, which makes the scale 1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      init: start of A; `kaiming` as loralib, `gaussian` N(0, std^2) as the paper. B starts at zero.
      std: standard deviation of `gaussian`.
      dropout: rate on the branch's input; takes effect after `lora_jax.seed_dropout`.
      parts: of a fused projection, the parts to adapt; each has factors of its own.
      fused: names of all its parts, in order.
      fused_sizes: sizes of the parts where they are not equal.
      magnitude: trains the norm of every output's weights too: DoRA, see `low_rank.dora`.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range (rank and alpha are checked again against each layer).
    """
    per_target = {} if targets is None else by_target(targets)  # a config without them
    if not per_target:
        raise ValueError("lora needs at least one target pattern")
    shared = {
        "rank": rank, "alpha": alpha, "scaling": scaling, "init": init, "std": std,
        "dropout": dropout, "parts": parts, "fused": fused, "fused_sizes": fused_sizes,
        "magnitude": magnitude,
    }  # fmt: skip
    settings = {
        pattern: LoRASettings.from_arguments({**shared, **arguments}, f"target {pattern!r}")
        for pattern, arguments in per_target.items()
    }
    rules = [Rule(r"(.*/)?lora/.*", "lora")]  # all that the inserted child holds
    if bias == "all":
        rules.append(Rule(common.BIAS, "bias"))
    elif bias == "lora_only":
        whole = ["bias"] * any(re.fullmatch(p, "") for p in per_target)  # the root is a layer
        rules.append(Rule("|".join([*(f"(?:{p})/bias" for p in per_target), *whole]), "bias"))
    elif bias != "none":
        raise ValueError(f"bias must be 'none', 'all' or 'lora_only', got {bias!r}")
    resolved = {pattern: target.to_arguments() for pattern, target in settings.items()}
    arguments = {"targets": resolved, "bias": bias, "head": head}
    return common.method("lora", arguments, (LoRAInsertion(tuple(settings.items())),), *rules)
