"""The factors and the head of a loralib state dict, found and checked, in loralib's layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lora_jax.interop.loralib_names import Architecture

Arrays = dict[str, np.ndarray]
Factors = dict[str, dict[tuple[int, str], np.ndarray]]  # module -> (layer, A or B) -> array


def sort_out(
    plain: Mapping[str, np.ndarray], architecture: Architecture, ignore_base: bool
) -> tuple[Factors, Arrays]:
    """The factors by module, and the head; what is left must be ignored explicitly.

    Args:
      plain: plain name (see `loralib_names.plain_name`) to array.
      architecture: whose names to look for.
      ignore_base: allow keys that are neither.

    Raises:
      ValueError: factors of an unknown layer, other keys, arrays that are no weights.
    """
    pattern = re.compile(re.escape(architecture.root) + r"\.(\d+)\.(.+)\.lora_([AB])")
    factors: Factors = {}
    head, unknown, rest = {}, [], []
    for key, value in plain.items():
        found = pattern.fullmatch(key)
        if found and found[2] in architecture.modules:
            factors.setdefault(found[2], {})[int(found[1]), found[3]] = _checked(key, value)
        elif "lora_" in key:
            unknown.append(key)
        elif key in architecture.head:
            head[key] = _checked(key, value)
        else:
            rest.append(key)
    if unknown:
        raise ValueError(
            f"{len(unknown)} factors belong to no layer that can be converted: {_some(unknown)}. "
            f"Of {architecture.name} these can: {', '.join(architecture.modules)}; embeddings cannot"
        )
    if rest and not ignore_base:
        raise ValueError(
            f"{len(rest)} keys are neither factors nor the head of {architecture.name}: "
            f"{_some(rest)}. Base weights saved with factors may have the update merged into them, "
            "so they are not used. To take the factors and the head and leave all else behind "
            "(trained biases too, if these are some), set ignore_base (--ignore_base)"
        )
    if missing := [key for key in architecture.head if head and key not in head]:
        raise ValueError(f"the head of {architecture.name} lacks {', '.join(missing)}")
    for key, value in head.items():
        rows = head[key.removesuffix("bias") + "weight"].shape[0] if key.endswith("bias") else None
        if rows is not None and value.shape != (rows,):
            raise ValueError(f"{key} has shape {value.shape}, but its weight has {rows} rows")
    return factors, head


def _checked(key: str, value: np.ndarray) -> np.ndarray:
    axes = 1 if key.endswith(".bias") else 2
    if value.ndim != axes:
        raise ValueError(f"{key} has shape {value.shape}, expected {axes} axes")
    if value.dtype.kind not in "fV":  # bfloat16 has kind V
        raise ValueError(f"{key} has type {value.dtype}, expected floating point numbers")
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{key} holds numbers that are not finite; the checkpoint is broken")
    return value


def depth(factors: Factors, architecture: Architecture, layers: int | None) -> int:
    """The number of layers; every module must have both factors in every layer.

    Args:
      factors: from `sort_out`.
      architecture: for names in messages.
      layers: the model's number of layers, or None to take what the factors have.

    Raises:
      ValueError: factors missing, or for more layers than the model has.
    """
    found = 1 + max(layer for own in factors.values() for layer, _ in own)
    if layers is not None and found > layers:
        raise ValueError(
            f"there are factors for {architecture.root}.{found - 1}, but the model has {layers} "
            "layers: this is an adapter of another model"
        )
    missing = [
        f"{architecture.root}.{layer}.{module}.lora_{side}"
        for module, own in factors.items()
        for layer in range(layers or found)
        for side in "AB"
        if (layer, side) not in own
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} factors are missing: {_some(missing)}. Every layer needs both factors "
            "of each adapted module; the checkpoint is incomplete, or the model is another"
        )
    return found


def stack(
    own: Mapping[tuple[int, str], np.ndarray], stem: str, layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """A (layers, r, d_in) and B (layers, d_out, r) of one module.

    Args:
      own: (layer, side) to array.
      stem: name of the module with {} for the layer, for messages.
      layers: how many.

    Raises:
      ValueError: the layers have other shapes (another rank).
    """
    for side in "AB":
        first = own[0, side].shape
        for layer in range(layers):
            if own[layer, side].shape != first:
                raise ValueError(
                    f"{stem.format(layer)}.lora_{side} has shape {own[layer, side].shape}, that of "
                    f"layer 0 {first}; all layers of a module must have one rank"
                )
    a, b = (np.stack([own[layer, side] for layer in range(layers)]) for side in "AB")
    return a, b


def transposed(x: np.ndarray) -> np.ndarray:
    """The last two axes swapped, in memory too: safetensors writes a strided array wrongly."""
    return np.ascontiguousarray(np.swapaxes(x, -1, -2))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (" ..." if len(keys) > 3 else "")
