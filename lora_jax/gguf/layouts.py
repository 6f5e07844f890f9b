"""GGUF's packed types: the fields of a block, and the values that they stand for.

Every type is value = scale q + offset, with small integers q (ggml-common.h, ggml-quants.c). The products
are in float32 and in the order of ggml, so values equal its own bit for bit. They are written once, for
arrays of NumPy (reading files) and of JAX (inside of compiled functions): blocks lie on any axis, their
values on the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from lora_jax.gguf.kinds import KINDS, NUMBERS

Array = Any  # of NumPy or of JAX
Arrays = Mapping[str, Array]
Fields = tuple[
    tuple[str, Any, int], ...
]  # name, type and number of elements, in the order of the file


class Layout(NamedTuple):
    """A packed type.

    Attributes:
      fields: of a block.
      product: the values, float32, from the fields by name and the axis of blocks. A field of one element
        has no axis of values.
      most: largest magnitudes of what the fields `scale` and `least` are multiplied with.
    """

    fields: Fields
    product: Callable[[Arrays, int], Array]
    most: tuple[int, int]


def width(kind: str) -> int:
    """Values of a block."""
    return KINDS[NUMBERS[kind]].values


def fields(kind: str, raw: UInt8[np.ndarray, "*blocks size"]) -> dict[str, np.ndarray]:
    """The fields of blocks by name, from their bytes."""
    arrays, start = {}, 0
    for name, dtype, count in LAYOUTS[kind].fields:
        stop = start + count * np.dtype(dtype).itemsize
        little = np.dtype(dtype).newbyteorder("<")
        field = np.ascontiguousarray(raw[..., start:stop]).view(little).astype(dtype, copy=False)
        arrays[name], start = field[..., 0] if count == 1 else field, stop
    return arrays


def blocks(kind: str, arrays: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "*blocks size"]:
    """The bytes of blocks: the inverse of `fields`."""
    parts = []
    for name, dtype, count in LAYOUTS[kind].fields:
        field = np.asarray(arrays[name])
        field = np.ascontiguousarray(field[..., None] if count == 1 else field)
        parts.append(field.astype(np.dtype(dtype).newbyteorder("<"), copy=False).view(np.uint8))
    whole: np.ndarray = np.concatenate(parts, axis=-1)
    return whole


def grouped(values: Array, axis: int, groups: int) -> Array:
    """An axis as two: groups, and what each has."""
    axis %= values.ndim
    shape = (*values.shape[:axis], groups, values.shape[axis] // groups, *values.shape[axis + 1 :])
    return values.reshape(shape)


def joined(values: Array, axis: int) -> Array:
    """An axis and the next one as one."""
    shape = values.shape
    return values.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def _library(array: Array) -> Any:
    """NumPy or jax.numpy, whose an array is."""
    return array.__array_namespace__()


def _low_then_high(packed: Array, axis: int) -> Array:
    """The low halves of bytes along an axis, then the high ones: twice as long."""
    return _library(packed).concatenate([packed & 15, packed >> 4], axis=axis)


def _behind(values: Array, axis: int) -> Array:
    """An array with a new axis of one element at `axis`."""
    return _library(values).expand_dims(values, axis)


def _shifted(values: Array, shifts: Array, axis: int) -> Array:
    """Values without their last bits, with the numbers of these along an axis of the values."""
    along = shifts.reshape(-1, *[1] * (values.ndim - axis - 1))
    return values >> _library(values).asarray(along)


def _each(scale: Array, axis: int) -> Array:
    """A scale of every block, for its values."""
    return _behind(scale, axis + 1).astype(np.float32)


def _signed(codes: Array, zero: int) -> Array:
    return (codes.astype(np.int8) - np.int8(zero)).astype(np.float32)


def _five(arrays: Arrays, axis: int) -> Array:
    """Codes of five bits; four bytes have the fifth bits of the 32 values."""
    bits = _shifted(_behind(arrays["high"], axis + 2), np.arange(8, dtype=np.uint8), axis + 2)
    return _low_then_high(arrays["codes"], axis + 1) | joined(bits & 1, axis + 1) << 4


def _with_least(codes: Array, arrays: Arrays, axis: int) -> Array:
    return codes.astype(np.float32) * _each(arrays["scale"], axis) + _each(arrays["least"], axis)


def _q4_0(arrays: Arrays, axis: int) -> Array:
    return _signed(_low_then_high(arrays["codes"], axis + 1), 8) * _each(arrays["scale"], axis)


def _q4_1(arrays: Arrays, axis: int) -> Array:
    return _with_least(_low_then_high(arrays["codes"], axis + 1), arrays, axis)


def _q5_0(arrays: Arrays, axis: int) -> Array:
    return _signed(_five(arrays, axis), 16) * _each(arrays["scale"], axis)


def _q5_1(arrays: Arrays, axis: int) -> Array:
    return _with_least(_five(arrays, axis), arrays, axis)


def _q8_0(arrays: Arrays, axis: int) -> Array:
    return arrays["codes"].astype(np.float32) * _each(arrays["scale"], axis)


def _k_groups(codes: Array, arrays: Arrays, axis: int) -> Array:
    """codes (eight groups of 32) scale - least for every group of Q4_K and Q5_K, as one axis of values.

    Scales and least values are six bits each, in twelve bytes, in units of those of the block.
    """
    low, high, rest = _library(codes).split(arrays["scales"], 3, axis=axis + 1)
    join = _library(codes).concatenate
    scales = join([low & 63, rest & 15 | low >> 6 << 4], axis=axis + 1)
    least = join([high & 63, rest >> 4 | high >> 6 << 4], axis=axis + 1)
    scales, least = _each(arrays["scale"], axis) * scales, _each(arrays["least"], axis) * least
    values = codes.astype(np.float32) * _behind(scales, axis + 2)
    return joined(values - _behind(least, axis + 2), axis + 1)


def _k_nibbles(arrays: Arrays, axis: int) -> Array:
    """Eight groups of 32 codes: of each 32 bytes first the low halves, then the high ones."""
    pairs = _low_then_high(grouped(arrays["codes"], axis + 1, 4), axis + 2)
    return grouped(joined(pairs, axis + 1), axis + 1, 8)


def _q4_k(arrays: Arrays, axis: int) -> Array:
    return _k_groups(_k_nibbles(arrays, axis), arrays, axis)


def _q5_k(arrays: Arrays, axis: int) -> Array:
    # Bit j of byte l is the fifth bit of value l of group j.
    bits = _shifted(_behind(arrays["high"], axis + 1), np.arange(8, dtype=np.uint8), axis + 1) & 1
    return _k_groups(_k_nibbles(arrays, axis) | bits << 4, arrays, axis)


def _q6_k(arrays: Arrays, axis: int) -> Array:
    low = _low_then_high(grouped(arrays["codes"], axis + 1, 2), axis + 2)  # halves of 128 values
    high = _behind(grouped(arrays["high"], axis + 1, 2), axis + 2)
    high = _shifted(high, np.arange(0, 8, 2, dtype=np.uint8), axis + 2) & 3
    codes = grouped(joined(low | joined(high, axis + 2) << 4, axis + 1), axis + 1, 16)
    scales = _each(arrays["scale"], axis) * arrays["scales"].astype(np.float32)
    return joined(_signed(codes, 32) * _behind(scales, axis + 2), axis + 1)


_SCALE, _LEAST = ("scale", np.float16, 1), ("least", np.float16, 1)
_HIGH, _NIBBLES = ("high", np.uint8, 4), ("codes", np.uint8, 16)
_SCALES, _K_CODES = ("scales", np.uint8, 12), ("codes", np.uint8, 128)
LAYOUTS: Mapping[str, Layout] = {
    "Q4_0": Layout((_SCALE, _NIBBLES), _q4_0, (8, 0)),
    "Q4_1": Layout((_SCALE, _LEAST, _NIBBLES), _q4_1, (15, 1)),
    "Q5_0": Layout((_SCALE, _HIGH, _NIBBLES), _q5_0, (16, 0)),
    "Q5_1": Layout((_SCALE, _LEAST, _HIGH, _NIBBLES), _q5_1, (31, 1)),
    "Q8_0": Layout((_SCALE, ("codes", np.int8, 32)), _q8_0, (128, 0)),
    "Q4_K": Layout((_SCALE, _LEAST, _SCALES, _K_CODES), _q4_k, (15 * 63, 63)),
    "Q5_K": Layout(
        (_SCALE, _LEAST, _SCALES, ("high", np.uint8, 32), _K_CODES), _q5_k, (31 * 63, 63)
    ),
    "Q6_K": Layout(
        (_K_CODES, ("high", np.uint8, 64), ("scales", np.int8, 16), _SCALE),
        _q6_k,
        (32 * 128, 0),
    ),
}
