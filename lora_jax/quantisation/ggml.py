"""GGUF's packed types as they are stored: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the K types Q4_K, Q5_K, Q6_K.

The arrays hold the bytes of the blocks (ggml-common.h), one array for each field, so that both ways lose
nothing. Values equal ggml's bit for bit: products of its scales and integers are exact in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from lora_jax.errors import InputError, brief
from lora_jax.quantisation.formats import Format, Part, divided, grouped, joined, low_then_high

Fields = tuple[
    tuple[str, Any, int], ...
]  # name, type and number of elements, in the order of the file
_HALF = np.float16


@dataclasses.dataclass(frozen=True)
class Kind:
    """A packed type.

    Attributes:
      values: of a block.
      fields: of a block.
      unpack: the values from the fields by name and the axis of blocks.
      pack: fields from values (blocks, values); None for types that are read only.
    """

    values: int
    fields: Fields
    unpack: Callable[[Mapping[str, Array], int], Array]
    pack: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Ggml(Format):
    """A packed type of GGUF.

    Attributes:
      kind: its name, such as Q4_K.
    """

    name: ClassVar[str] = "ggml"
    kind: str = "Q8_0"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}; got {brief(self.kind)}")

    def width(self, inputs: int) -> int:
        """Values of a block."""
        return divided(self.kind, inputs, KINDS[self.kind].values)

    def parts(self, inputs: int) -> dict[str, Part]:
        """The fields of a block; a field of one element is of extent `block`."""
        self.width(inputs)
        return {
            name: Part(dtype, "block") if count == 1 else Part(dtype, "values", count)
            for name, dtype, count in KINDS[self.kind].fields
        }

    def pack(self, rows: Float32[np.ndarray, "rows inputs"]) -> dict[str, np.ndarray]:
        """The arrays of a matrix, rounded as ggml's reference does."""
        pack = KINDS[self.kind].pack
        if pack is None:
            raise InputError(
                f"{self.kind} is read from files that have it; weights are packed as "
                f"{', '.join(n for n, k in KINDS.items() if k.pack)}, nf4, fp4 or int8"
            )
        blocks = rows.reshape(len(rows), -1, self.width(rows.shape[1]))
        return pack(blocks)

    def unpack(self, arrays: Mapping[str, Array], axis: int) -> Float[Array, ...]:
        """The values; see the base class."""
        return KINDS[self.kind].unpack(arrays, axis)

    def from_blocks(self, raw: UInt8[np.ndarray, "rows blocks size"]) -> dict[str, np.ndarray]:
        """The arrays from the bytes of a file."""
        arrays, start = {}, 0
        for name, dtype, count in KINDS[self.kind].fields:
            stop = start + count * np.dtype(dtype).itemsize
            field = np.ascontiguousarray(raw[..., start:stop]).view(
                np.dtype(dtype).newbyteorder("<")
            )
            field = field.astype(dtype, copy=False)
            arrays[name], start = field[..., 0] if count == 1 else field, stop
        return arrays

    def to_blocks(self, arrays: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "rows blocks size"]:
        """The inverse of `from_blocks`."""
        fields = []
        for name, dtype, count in KINDS[self.kind].fields:
            field = np.asarray(arrays[name])
            field = np.ascontiguousarray(field[..., None] if count == 1 else field)
            fields.append(
                field.astype(np.dtype(dtype).newbyteorder("<"), copy=False).view(np.uint8)
            )
        blocks: np.ndarray = np.concatenate(fields, axis=-1)
        return blocks


def _each(scale: Array, axis: int) -> Array:
    """A scale of every block, for its values."""
    each: Array = jnp.expand_dims(scale, axis + 1).astype(jnp.float32)
    return each


def _signed(codes: Array, zero: int) -> Array:
    signed: Array = (codes.astype(jnp.int8) - jnp.int8(zero)).astype(jnp.float32)
    return signed


def _fifth(high: Array, axis: int) -> Array:
    """32 bits of every block, as four bytes, times 16: the fifth bits of its values."""
    bits = jnp.expand_dims(high, axis + 2) >> _along(jnp.arange(8, dtype=jnp.uint8), high, axis + 2)
    return joined(bits & 1, axis + 1) << 4


def _along(values: Array, like: Array, axis: int) -> Array:
    """Values for a new axis of an array."""
    return values.reshape(-1, *[1] * (like.ndim - axis))


def _q4_0(arrays: Mapping[str, Array], axis: int) -> Array:
    return _signed(low_then_high(arrays["codes"], axis + 1), 8) * _each(arrays["scale"], axis)


def _q4_1(arrays: Mapping[str, Array], axis: int) -> Array:
    codes = low_then_high(arrays["codes"], axis + 1).astype(jnp.float32)
    return codes * _each(arrays["scale"], axis) + _each(arrays["least"], axis)


def _five(arrays: Mapping[str, Array], axis: int) -> Array:
    return low_then_high(arrays["codes"], axis + 1) | _fifth(arrays["high"], axis)


def _q5_0(arrays: Mapping[str, Array], axis: int) -> Array:
    return _signed(_five(arrays, axis), 16) * _each(arrays["scale"], axis)


def _q5_1(arrays: Mapping[str, Array], axis: int) -> Array:
    codes = _five(arrays, axis).astype(jnp.float32)
    return codes * _each(arrays["scale"], axis) + _each(arrays["least"], axis)


def _q8_0(arrays: Mapping[str, Array], axis: int) -> Array:
    return arrays["codes"].astype(jnp.float32) * _each(arrays["scale"], axis)


def _k_scales(arrays: Mapping[str, Array], axis: int) -> tuple[Array, Array]:
    """Scales and least values of the eight groups of Q4_K and Q5_K: six bits each, in twelve bytes."""
    low, high, rest = jnp.split(arrays["scales"], 3, axis=axis + 1)
    scales = jnp.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=axis + 1)
    least = jnp.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=axis + 1)
    return _each(arrays["scale"], axis) * scales, _each(arrays["least"], axis) * least


def _of_groups(codes: Array, scales: Array, least: Array, axis: int) -> Array:
    """codes (groups, width) scale - least for every group, as one axis of values."""
    values = codes.astype(jnp.float32) * jnp.expand_dims(scales, axis + 2)
    return joined(values - jnp.expand_dims(least, axis + 2), axis + 1)


def _k_nibbles(arrays: Mapping[str, Array], axis: int) -> Array:
    """Eight groups of 32 codes: of each 32 bytes first the low halves, then the high ones."""
    pairs = low_then_high(grouped(arrays["codes"], axis + 1, 4), axis + 2)
    return grouped(joined(pairs, axis + 1), axis + 1, 8)


def _q4_k(arrays: Mapping[str, Array], axis: int) -> Array:
    return _of_groups(_k_nibbles(arrays, axis), *_k_scales(arrays, axis), axis)


def _q5_k(arrays: Mapping[str, Array], axis: int) -> Array:
    # Bit j of byte l is the fifth bit of value l of group j.
    high = arrays["high"]
    bits = jnp.expand_dims(high, axis + 1)
    bits = bits >> _along(jnp.arange(8, dtype=jnp.uint8), high, axis + 1) & 1
    codes = _k_nibbles(arrays, axis) | bits << 4
    return _of_groups(codes, *_k_scales(arrays, axis), axis)


def _q6_k(arrays: Mapping[str, Array], axis: int) -> Array:
    low = low_then_high(grouped(arrays["codes"], axis + 1, 2), axis + 2)  # halves of 128 values
    high = jnp.expand_dims(grouped(arrays["high"], axis + 1, 2), axis + 2)
    shifts = jnp.arange(0, 8, 2, dtype=jnp.uint8)
    high = high >> _along(shifts, arrays["high"], axis + 1) & 3
    codes = grouped(joined(low | joined(high, axis + 2) << 4, axis + 1), axis + 1, 16)
    scales = _each(arrays["scale"], axis) * arrays["scales"].astype(jnp.float32)
    values = _signed(codes, 32) * jnp.expand_dims(scales, axis + 2)
    return joined(values, axis + 1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        inverse: np.ndarray = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    return inverse


def _halves(codes: np.ndarray) -> np.ndarray:
    """Codes below 16, two to a byte: the first half of the block in the low halves."""
    low, high = np.split(codes & np.uint8(15), 2, axis=-1)
    packed: np.ndarray = low | high << np.uint8(4)
    return packed


def _signed_codes(blocks: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the values between -largest and largest - 1 in units of the scale, and the scale.

    The value of the largest magnitude, with its sign, is code 0.
    """
    at = np.abs(blocks).argmax(axis=-1, keepdims=True)
    scale = np.take_along_axis(blocks, at, axis=-1) / np.float32(-largest)
    # ggml rounds the product with the inverse twice, not as a fused operation.
    codes = np.trunc(blocks * _inverse(scale) + np.float32(largest + 0.5))
    return codes.clip(0, 2 * largest - 1).astype(np.uint8), scale[..., 0].astype(_HALF)


def _shifted_codes(blocks: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes from 0 to `most` between the least and the largest value, the scale, the least value."""
    least, largest = (getattr(blocks, name)(axis=-1, keepdims=True) for name in ("min", "max"))
    scale = (largest - least) / np.float32(most)
    codes = np.trunc((blocks - least) * _inverse(scale) + np.float32(0.5))
    halves = scale[..., 0].astype(_HALF), least[..., 0].astype(_HALF)
    return codes.clip(0, most).astype(np.uint8), *halves


def _fifth_bits(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


def _pack_q4_0(blocks: np.ndarray) -> dict[str, np.ndarray]:
    codes, scale = _signed_codes(blocks, 8)
    return {"scale": scale, "codes": _halves(codes)}


def _pack_q4_1(blocks: np.ndarray) -> dict[str, np.ndarray]:
    codes, scale, least = _shifted_codes(blocks, 15)
    return {"scale": scale, "least": least, "codes": _halves(codes)}


def _pack_q5_0(blocks: np.ndarray) -> dict[str, np.ndarray]:
    codes, scale = _signed_codes(blocks, 16)
    return {"scale": scale, "high": _fifth_bits(codes), "codes": _halves(codes)}


def _pack_q5_1(blocks: np.ndarray) -> dict[str, np.ndarray]:
    codes, scale, least = _shifted_codes(blocks, 31)
    return {"scale": scale, "least": least, "high": _fifth_bits(codes), "codes": _halves(codes)}


def _pack_q8_0(blocks: np.ndarray) -> dict[str, np.ndarray]:
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # halves away from zero
    return {"scale": scale[..., 0].astype(_HALF), "codes": codes.astype(np.int8)}


_SCALE, _LEAST, _NIBBLES = ("scale", _HALF, 1), ("least", _HALF, 1), ("codes", np.uint8, 16)
_HIGH, _SCALES = ("high", np.uint8, 4), ("scales", np.uint8, 12)
KINDS: Mapping[str, Kind] = {
    "Q4_0": Kind(32, (_SCALE, _NIBBLES), _q4_0, _pack_q4_0),
    "Q4_1": Kind(32, (_SCALE, _LEAST, _NIBBLES), _q4_1, _pack_q4_1),
    "Q5_0": Kind(32, (_SCALE, _HIGH, _NIBBLES), _q5_0, _pack_q5_0),
    "Q5_1": Kind(32, (_SCALE, _LEAST, _HIGH, _NIBBLES), _q5_1, _pack_q5_1),
    "Q8_0": Kind(32, (_SCALE, ("codes", np.int8, 32)), _q8_0, _pack_q8_0),
    "Q4_K": Kind(256, (_SCALE, _LEAST, _SCALES, ("codes", np.uint8, 128)), _q4_k),
    "Q5_K": Kind(
        256, (_SCALE, _LEAST, _SCALES, ("high", np.uint8, 32), ("codes", np.uint8, 128)), _q5_k
    ),
    "Q6_K": Kind(
        256,
        (("codes", np.uint8, 128), ("high", np.uint8, 64), ("scales", np.int8, 16), _SCALE),
        _q6_k,
    ),
}
