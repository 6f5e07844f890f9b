"""Finds and checks the factors and the head of a loralib state dict, in loralib's layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from lora_jax.errors import InputError
from lora_jax.interop.loralib_names import Architecture

MOST_LAYERS = 1000  # of a model; a larger number in a file would only take memory
Arrays = dict[str, np.ndarray]
Factors = dict[str, dict[tuple[int, str], np.ndarray]]  # module -> (layer, A or B) -> array


def sort_out(
    plain: Mapping[str, np.ndarray], architecture: Architecture, ignore_base: bool
) -> tuple[Factors, Arrays]:
    """Sorts a state dict into the factors by module and the head.

    Args:
      plain: plain name (see `loralib_names.plain_name`) to array.
      architecture: the architecture whose names to look for.
      ignore_base: leave out other keys instead of refusing them.

    Raises:
      ValueError: there are factors of an unknown layer or other keys, the head is not complete, or
        arrays are not weights.
    """
    pattern = re.compile(re.escape(architecture.root) + r"\.(0|[1-9][0-9]{0,8})\.(.+)\.lora_([AB])")
    factors: Factors = {}
    head, unknown, rest = {}, [], []
    for key, value in plain.items():
        match = pattern.fullmatch(key)
        if match and int(match[1]) >= MOST_LAYERS:
            raise InputError(
                f"{key}: layer {match[1]} of a model; there are at most {MOST_LAYERS:,}"
            )
        if match and match[2] in architecture.modules:
            factors.setdefault(match[2], {})[int(match[1]), match[3]] = _checked(key, value)
        elif "lora_" in key:
            unknown.append(key)
        elif key in architecture.head:
            head[key] = _checked(key, value)
        else:
            rest.append(key)
    if unknown:
        raise InputError(
            f"{len(unknown)} factors belong to no layer that can be converted: {_some(unknown)}. "
            f"Of {architecture.name} these can: {', '.join(architecture.modules)}; embeddings cannot"
        )
    if rest and not ignore_base:
        raise InputError(
            f"{len(rest)} keys are neither factors nor the head of {architecture.name}: "
            f"{_some(rest)}. Base weights saved with factors may have the update merged into them, "
            "so they are not used. To convert the factors and the head and leave out all other keys "
            "(trained biases too, if there are any), set ignore_base (--ignore_base)"
        )
    if missing := [key for key in architecture.head if head and key not in head]:
        raise InputError(f"the head of {architecture.name} lacks {', '.join(missing)}")
    for key, value in head.items():
        rows = head[key.removesuffix("bias") + "weight"].shape[0] if key.endswith("bias") else None
        if rows is not None and value.shape != (rows,):
            raise InputError(f"{key} has shape {value.shape}, but its weight has {rows} rows")
    _check_widths(factors, {key: head[key] for key in architecture.head if key in head})
    return factors, head


def _check_widths(factors: Factors, head: Arrays) -> None:
    """Raises InputError where a matrix of the head does not take what the layer before it gives."""
    widths = {
        (f"{module}.lora_A", a.shape[1])
        for module, by_layer in factors.items()
        if module.startswith("attention.self.")  # these take the hidden state
        for (_, side), a in by_layer.items()
        if side == "A"
    }
    before = min(widths, default=None)
    for key, value in head.items():
        if not key.endswith("weight"):
            continue
        if before is not None and value.shape[1] != before[1]:
            raise InputError(
                f"{key} has shape {value.shape}, but {before[0]} is of width {before[1]}: the head is of "
                "another model, or the checkpoint is broken"
            )
        before = (key, value.shape[0])


def _checked(key: str, value: Shaped[np.ndarray, ...]) -> Float32[np.ndarray, ...]:
    axes = 1 if key.endswith(".bias") else 2
    if value.ndim != axes:
        raise InputError(f"{key} has shape {value.shape}, expected {axes} axes")
    if value.dtype.kind not in "fV":  # bfloat16 has kind V
        raise InputError(f"{key} has type {value.dtype}, expected floating point numbers")
    value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise InputError(f"{key} holds numbers that are not finite; the checkpoint is broken")
    return value


def depth(factors: Factors, architecture: Architecture, layers: int | None) -> int:
    """The number of layers; every module must have both factors in every layer.

    Args:
      factors: from `sort_out`.
      architecture: the architecture, for names in messages.
      layers: number of layers of the model, or None to count those of the factors.

    Raises:
      ValueError: factors are missing, or there are some for more layers than the model has.
    """
    count = 1 + max(layer for by_layer in factors.values() for layer, _ in by_layer)
    if layers is not None and count > layers:
        raise InputError(
            f"there are factors for {architecture.root}.{count - 1}, but the model has {layers} "
            "layers: this is an adapter of another model"
        )
    missing = [
        f"{architecture.root}.{layer}.{module}.lora_{side}"
        for module, by_layer in factors.items()
        for layer in range(layers or count)
        for side in "AB"
        if (layer, side) not in by_layer
    ]
    if missing:
        raise InputError(
            f"{len(missing)} factors are missing: {_some(missing)}. Every layer needs both factors "
            "of each adapted module; the checkpoint is incomplete, or it is of another model"
        )
    return count


def stack(
    by_layer: Mapping[tuple[int, str], np.ndarray], stem: str, layers: int
) -> tuple[Shaped[np.ndarray, "{layers} r_A inputs"], Shaped[np.ndarray, "{layers} outputs r_B"]]:
    """Stacks A and B of one module over the layers.

    Args:
      by_layer: (layer, side) to array.
      stem: name of the module with {} for the layer, for messages.
      layers: number of layers.

    Raises:
      ValueError: the shapes of the layers differ, because their ranks do.
    """
    for side in "AB":
        first = by_layer[0, side].shape
        for layer in range(layers):
            shape = by_layer[layer, side].shape
            if shape != first:
                raise InputError(
                    f"{stem.format(layer)}.lora_{side} has shape {shape}, that of layer 0 has "
                    f"{first}; all layers of a module must have the same rank"
                )
    a, b = (np.stack([by_layer[layer, side] for layer in range(layers)]) for side in "AB")
    return a, b


def transposed(x: Shaped[np.ndarray, "*layers m n"]) -> Shaped[np.ndarray, "*layers n m"]:
    """Swaps the last two axes, in memory too: safetensors writes a strided array wrongly."""
    return np.ascontiguousarray(np.swapaxes(x, -1, -2))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (" ..." if len(keys) > 3 else "")
