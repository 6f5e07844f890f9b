"""Our adapters as loralib state dicts: the inverse of `loralib.from_state_dict`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora_jax.low_rank import contraction
from lora_jax.methods.lora import LoRAInsertion
from lora_jax.interop.loralib_factors import Arrays, transposed
from lora_jax.interop.loralib_names import ARCHITECTURES, FUSED, Architecture, guess
from lora_jax.method import Method


def to_state_dict(
    values: Mapping[str, np.ndarray], architecture: str | None = None, prefix: str = ""
) -> Arrays:
    """Converts an adapter, bit for bit; PyTorch loads the result with `strict=False`.

    Args:
      values: our leaves by path, factors and head.
      architecture: `roberta`, `bert` or `gpt2`; needed for an encoder without head.
      prefix: put before every key. The authors' GPT-2 code needs `module.`: it silently ignores
        keys that begin with `transformer.`.

    Raises:
      ValueError: leaves that loralib has no place for; names them.
    """
    names = _architecture(values, architecture)
    result: Arrays = {}
    stacked: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    left = dict(values)
    for theirs, ours in names.modules.items():
        path = f"{names.block}/{ours}/lora"
        parts = FUSED if theirs in names.fused else ("",)
        pairs = []
        for part in parts:
            own = [f"{path}/{part}/{side}".replace("//", "/") for side in "ab"]
            if all(leaf in left for leaf in own):
                pairs.append([np.asarray(left.pop(leaf)) for leaf in own])
                if theirs in names.fused:
                    pairs[-1][1] = _without_parts_axis(pairs[-1][1], own[1])
        if pairs:
            stacked[theirs] = _joined(pairs, path)
    for key, path in names.head.items():
        if path in left:
            leaf = np.asarray(left.pop(path))
            result[prefix + key] = transposed(leaf) if leaf.ndim == 2 else leaf
    if left:
        raise ValueError(
            f"{len(left)} leaves have no place in a loralib file of {names.name}, for example "
            f"{min(left)}; it holds both factors of {', '.join(names.modules.values())} under "
            f"{names.block}, and the head"
        )
    layers = [
        (f"{prefix}{names.root}.{layer}.{theirs}.lora_{side}", transposed(factor[layer]))
        for theirs, pair in stacked.items()
        for side, factor in zip("AB", pair, strict=True)
        for layer in range(len(factor))
    ]
    return dict(layers) | result


def _without_parts_axis(b: np.ndarray, path: str) -> np.ndarray:
    """(layers, r, width) from our (layers, r, 1, width): the outputs of one part are (1, width)."""
    if b.ndim != 4 or b.shape[2] != 1:
        raise ValueError(f"{path} has shape {b.shape}, expected (layers, rank, 1, width)")
    return b[:, :, 0]


def _joined(pairs: Sequence[Sequence[np.ndarray]], path: str) -> tuple[np.ndarray, np.ndarray]:
    """One pair (in our layout) for the parts of a fused module, as MergedLinear has it."""
    a, b = ([pair[side] for pair in pairs] for side in (0, 1))
    shapes = {(x.shape, y.shape) for x, y in pairs}
    if len(shapes) > 1:
        raise ValueError(
            f"{path}: loralib has one rank and width for all parts, these have {shapes}"
        )
    return np.concatenate(a, axis=-1), np.concatenate(b, axis=-1)


def layer_settings(
    method: Method, values: Mapping[str, Any], architecture: str | None = None
) -> dict[str, dict[str, Any]]:
    """The arguments with which loralib's layers must be built to take `to_state_dict`'s factors.

    Args:
      method: the adapter's.
      values: the adapter's leaves.
      architecture: as in `to_state_dict`.

    Returns:
      Module name to `r`, `lora_alpha`, `lora_dropout` and, for a MergedLinear, `enable_lora`.
    """
    names = _architecture(values, architecture)
    targets = [t for i in method.insertions if isinstance(i, LoRAInsertion) for t in i.targets]
    result: dict[str, dict[str, Any]] = {}
    for theirs, ours in names.modules.items():
        path = f"{names.block}/{ours}"
        if not any(leaf.startswith(f"{path}/lora/") for leaf in values):
            continue
        update = next(update for pattern, update in targets if re.fullmatch(pattern, path))
        scale = contraction.scale(update.rank, update.alpha, update.scaling)
        plain = update.scaling == "alpha/r"  # rsLoRA's scale needs another alpha there
        result[theirs] = {
            "r": update.rank,
            "lora_alpha": update.alpha if plain else scale * update.rank,
            "lora_dropout": update.dropout,
        }
        if update.parts:
            result[theirs]["enable_lora"] = [part in update.parts for part in FUSED]
    return result


def _architecture(values: Mapping[str, Any], name: str | None) -> Architecture:
    if name is None:
        return guess(values)
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {name!r}")
    return ARCHITECTURES[name]
