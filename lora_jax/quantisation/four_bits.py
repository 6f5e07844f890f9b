"""NF4 and FP4, the four-bit forms of bitsandbytes, with double quantisation of their scales (QLoRA).

The arrays hold the bytes of bitsandbytes: codes two to a byte, the first in the high half; the largest
magnitude of each block in float32, or in eight bits: absmax = map[code] nested + offset, with one nested
scale for 256 blocks. With blocks of 64 that is 4.127 bits a value (Dettmers et al. 2023, section 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from lora_jax.errors import InputError, brief
from lora_jax.gguf.layouts import joined
from lora_jax.quantisation import codebooks
from lora_jax.quantisation.formats import Format, Part, check_block, divided

Code = Literal["nf4", "fp4"]
BOOKS: Mapping[str, Float32[np.ndarray, " codes"]] = {"nf4": codebooks.NF4, "fp4": codebooks.FP4}
MAP = codebooks.dynamic_map()
NESTED = 256  # blocks that share a scale of their scales
_LEAST = np.float32(1e-38)


@dataclasses.dataclass(frozen=True)
class FourBits(Format):
    """Codes of one of two books.

    Attributes:
      code: nf4 or fp4.
      block: values that share a scale.
      double: whether the scales are quantised too.
    """

    name: ClassVar[str] = "four bits"
    code: Code = "nf4"
    block: int = 64
    double: bool = True

    def __post_init__(self) -> None:
        if self.code not in BOOKS:
            raise InputError(f"code must be nf4 or fp4, got {brief(self.code)}")
        check_block(self.block, self.code)

    def width(self, inputs: int) -> int:
        """Values of a block in a row of so many inputs."""
        return divided(self.code, inputs, self.block)

    def parts(self, inputs: int) -> dict[str, Part]:
        """Codes and scales; with double quantisation nested ones and an offset too."""
        codes = {"codes": Part(np.uint8, "values", self.width(inputs) // 2)}
        if not self.double:
            return {**codes, "absmax": Part(np.float32, "block")}
        return {
            **codes,
            "absmax": Part(np.uint8, "block"),
            "nested": Part(np.float32, "matrix", lambda blocks: -(-blocks // NESTED)),
            "offset": Part(np.float32, "matrix", lambda _: 1),
        }

    def pack(self, rows: Float32[np.ndarray, "rows inputs"]) -> dict[str, np.ndarray]:
        """The arrays of a matrix."""
        blocks = rows.reshape(len(rows), -1, self.width(rows.shape[1]))
        absmax = np.abs(blocks).max(axis=-1)
        scaled = blocks * (np.float32(1) / np.maximum(absmax, _LEAST))[..., None]
        codes = codebooks.nearest(np.clip(scaled, -1, 1), BOOKS[self.code])
        packed = {"codes": codes[..., ::2] << 4 | codes[..., 1::2]}
        return packed | (pack_scales(absmax) if self.double else {"absmax": absmax})

    def largest(self, arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, "rows blocks"]:
        """Magnitudes that no value of a block exceeds: the scales, as no code stands for more than 1."""
        most: np.ndarray = np.abs(scales_on_host(arrays))
        return most

    def unpack(self, arrays: Mapping[str, Array], axis: int) -> Float[Array, ...]:
        """The values; see the base class."""
        packed = arrays["codes"]
        codes = joined(jnp.stack([packed >> 4, packed & 15], axis=axis + 2), axis + 1)
        scales = self.without_matrix_parts(arrays, axis)["absmax"]
        return chosen(codes, BOOKS[self.code]) * jnp.expand_dims(scales, axis + 1)

    def without_matrix_parts(self, arrays: Mapping[str, Array], axis: int) -> Mapping[str, Array]:
        """The codes, and the scales in float32."""
        if "nested" not in arrays:
            return arrays
        return {"codes": arrays["codes"], "absmax": unpack_scales(arrays, axis)}


def pack_scales(
    absmax: Float32[np.ndarray, "rows blocks"], offset: np.float32 | None = None
) -> dict[str, np.ndarray]:
    """The scales of a matrix in eight bits.

    Args:
      absmax: of every block.
      offset: that is taken off first; their mean, if not given. bitsandbytes' mean differs from ours
        in the last bit, as PyTorch adds in an order that depends on the machine.
    """
    mean = np.float32(absmax.mean(dtype=np.float64)) if offset is None else offset
    flat = (absmax - mean).reshape(-1)
    groups = np.pad(flat, (0, -len(flat) % NESTED)).reshape(-1, NESTED)
    nested = np.abs(groups).max(axis=-1)
    scaled = groups * (np.float32(1) / np.where(nested > 0, nested, 1))[:, None]
    codes = np.where(nested[:, None] > 0, codebooks.nearest_of_map(scaled, MAP), 0)
    codes = codes.astype(np.uint8).reshape(-1)[: len(flat)].reshape(absmax.shape)
    return {"absmax": codes, "nested": nested, "offset": np.array([mean])}


def scales_on_host(
    arrays: Mapping[str, np.ndarray],
) -> Float32[np.ndarray, "*blocks"]:
    """The scales of blocks in their order, of a matrix with or without double quantisation."""
    codes = arrays["absmax"]
    if "nested" not in arrays:
        return codes
    each = np.repeat(arrays["nested"], NESTED)[: codes.size].reshape(codes.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # of broken files
        scales: np.ndarray = MAP[codes] * each + arrays["offset"]
    return scales


def unpack_scales(arrays: Mapping[str, Array], axis: int) -> Float[Array, ...]:
    """The scales of all blocks from the arrays of double quantisation, float32."""
    codes = arrays["absmax"]
    shape = codes.shape if axis else (*codes.shape[1:], codes.shape[0])
    # 256 blocks share a scale in the order of bitsandbytes, row by row.
    each = jnp.repeat(arrays["nested"], NESTED, total_repeat_length=NESTED * len(arrays["nested"]))
    each = each[: codes.size].reshape(shape)
    each = each if axis else jnp.moveaxis(each, -1, 0)
    # A fused multiply-add would round once where bitsandbytes rounds twice.
    product: Array = jax.lax.optimization_barrier(jnp.asarray(MAP)[codes] * each)
    return product + arrays["offset"][0]


def chosen(
    codes: UInt8[Array, "*shape"], book: Float32[np.ndarray, " codes"]
) -> Float[Array, "*shape"]:
    """The numbers of a book by code: a tree of choices, which is fused into what uses it."""
    # Zeros of the codes and not of nothing: as constants JAX would take them out of a scan over layers,
    # and keep sixteen arrays of the size of a weight.
    zeros = (codes & 0).astype(jnp.float32)
    level: list[Array] = [zeros + value for value in book]
    for bit in range(4):
        odd = (codes >> bit & 1).astype(bool)
        level = [jnp.where(odd, b, a) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]
