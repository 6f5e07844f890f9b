"""LoRA: low-rank updates of the layers that regular expressions name."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import factors, layers, partition
from lora_jax import flax_forms as _flax_forms  # noqa: F401 - registers the Flax layers
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import own_modules


@dataclasses.dataclass(frozen=True)
class LowRankInsertion:
    """Adapts every layer whose path matches one of the targets (first match wins)."""

    targets: tuple[tuple[str, layers.Update], ...]

    def _assign(self, paths: Sequence[str]) -> dict[str, tuple[str, layers.Update]]:
        found = {}
        for path in paths:
            for pattern, update in self.targets:
                if re.fullmatch(pattern, path):
                    found[path] = (pattern, update)
                    break
        for pattern, _ in self.targets:
            if not any(re.fullmatch(pattern, path) for path in paths):
                raise partition.no_match_error("target", pattern, paths)
        return found

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Turns the matched layers into their LoRA forms, in place."""
        modules = own_modules(model)
        assigned = self._assign(list(modules))
        _refuse_shared_weights(modules, assigned)
        for path, (_, update) in assigned.items():
            own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            layers.adapt(modules[path], update, own_key, path)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapted layer."""
        adapted = layers.adapted_layers(model)
        rows = []
        for path, (pattern, update) in self._assign(list(adapted)).items():
            layer = adapted[path]
            values = partition.count(partition.parameters(layer.lora))
            how = _settings(update)
            rows.append(MatchedLayer(pattern, path, layer.weight_shape(), how, values))
        return rows


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
                "updates of their own; share the whole layer instead of its weight"
            )


def _settings(update: layers.Update) -> str:
    parts = f", {','.join(update.parts)} of {','.join(update.fused)}" if update.parts else ""
    return f"rank {update.rank}, alpha {update.alpha:g}{parts}"


def plain(value: Any) -> Any:
    """The value as JSON has it: lists for tuples, Python numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def update(arguments: Mapping[str, Any], pattern: str) -> layers.Update:
    """A target's settings, checked; ValueError names the target."""
    known = {field.name for field in dataclasses.fields(layers.Update)}
    if unknown := sorted(set(arguments) - known):
        raise ValueError(f"target {pattern!r}: unknown {unknown}; known are {sorted(known)}")
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in plain(arguments).items()
    }
    rank = factors.check_rank(values["rank"], where=f"target {pattern!r}")
    values["alpha"] = rank if values["alpha"] is None else values["alpha"]
    factors.check_alpha(values["alpha"])
    factors.scale(rank, values["alpha"], values["scaling"])
    if values["init"] not in ("kaiming", "gaussian"):
        raise ValueError(f"init must be 'kaiming' or 'gaussian', got {values['init']!r}")
    return layers.Update(**values)
