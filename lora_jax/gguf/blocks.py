"""The values in GGUF's blocks: parsing into integers and scales first, the product apart from it.

Every packed type is y = scale q + offset, with small integers q and one scale (and offset) for a group of
them. `unpack` gives these three; `values` multiplies. The products are in float32 and in the order of ggml
(ggml-quants.c), so that the values equal its own bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32, Int8, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Blocks of one type, parsed.

    Attributes:
      quants: the integers, as they are multiplied.
      scales: of every group of integers.
      offsets: of every group; None where there are none.
    """

    quants: UInt8[np.ndarray, "blocks groups width"] | Int8[np.ndarray, "blocks groups width"]
    scales: Float32[np.ndarray, "blocks groups"]
    offsets: Float32[np.ndarray, "blocks groups"] | None = None


def _broken_scales() -> np.errstate:
    """Scales of broken files may be infinite; who reads the values looks for what is not finite."""
    return np.errstate(invalid="ignore", over="ignore")


def values(parts: Parts) -> Float32[np.ndarray, "blocks width"]:
    """The values of the blocks."""
    result = parts.quants.astype(np.float32)
    with _broken_scales():
        result *= parts.scales[..., None]
        if parts.offsets is not None:
            result += parts.offsets[..., None]
    return result.reshape(len(result), -1)


def _half(raw: np.ndarray, start: int, stop: int | None = None) -> np.ndarray:
    """float16 numbers of every block, in float32; one by default."""
    part = raw[:, start : start + 2 if stop is None else stop]
    return np.ascontiguousarray(part).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low halves of the bytes on the last axis, then the high ones: twice as long."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _group(quants: np.ndarray) -> np.ndarray:
    return quants[:, None]


def _q4_0(raw: np.ndarray) -> Parts:
    quants = _nibbles(raw[:, 2:]).view(np.int8) - np.int8(8)
    return Parts(quants=_group(quants), scales=_half(raw, 0))


def _q4_1(raw: np.ndarray) -> Parts:
    return Parts(quants=_group(_nibbles(raw[:, 4:])), scales=_half(raw, 0), offsets=_half(raw, 2))


def _fifth(raw: np.ndarray) -> np.ndarray:
    """32 bits of every block, times 16: the fifth bits of its values."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(raw: np.ndarray) -> Parts:
    quants = _nibbles(raw[:, 6:]) | _fifth(raw[:, 2:6])
    return Parts(quants=_group(quants.view(np.int8) - np.int8(16)), scales=_half(raw, 0))


def _q5_1(raw: np.ndarray) -> Parts:
    quants = _nibbles(raw[:, 8:]) | _fifth(raw[:, 4:8])
    return Parts(quants=_group(quants), scales=_half(raw, 0), offsets=_half(raw, 2))


def _q8_0(raw: np.ndarray) -> Parts:
    return Parts(quants=_group(raw[:, 2:].view(np.int8)), scales=_half(raw, 0))


def _k_scales(raw: np.ndarray) -> dict[str, np.ndarray]:
    """Scales and offsets of the eight groups of Q4_K and Q5_K: six bits each, in twelve bytes."""
    low, high, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=-1)
    least = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=-1)
    return {"scales": _half(raw, 0) * scales, "offsets": -(_half(raw, 2) * least)}


def _q4_k(raw: np.ndarray) -> Parts:
    quants = _nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return Parts(quants=quants, **_k_scales(raw))


def _q5_k(raw: np.ndarray) -> Parts:
    low = _nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # Bit j of byte l is the fifth bit of value l of group j.
    high = raw[:, 16:48, None] >> np.arange(8, dtype=np.uint8) & 1
    return Parts(quants=low | high.swapaxes(1, 2) << np.uint8(4), **_k_scales(raw))


def _q6_k(raw: np.ndarray) -> Parts:
    low = _nibbles(raw[:, :128].reshape(-1, 2, 64))  # halves of 128 values
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts[:, None] & 3
    quants = low | high.reshape(low.shape) << np.uint8(4)
    scales = _half(raw, 208) * raw[:, 192:208].view(np.int8)
    return Parts(quants=(quants.view(np.int8) - np.int8(32)).reshape(-1, 16, 16), scales=scales)


_PACKED: Mapping[str, Callable[[np.ndarray], Parts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
_PLAIN = ("F32", "F16", "BF16")
READ = (*_PLAIN, *_PACKED)  # names of the types whose values are read


def unpack(kind: str, raw: UInt8[np.ndarray, "blocks size"]) -> Parts:
    """Blocks of a packed type as integers, scales and offsets.

    Args:
      kind: one of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K.
      raw: the bytes of the blocks.
    """
    with _broken_scales():
        return _PACKED[kind](raw)


def dequantise(
    kind: str, raw: UInt8[np.ndarray, "blocks size"]
) -> Float32[np.ndarray, "blocks width"]:
    """The values of blocks of any type in `READ`.

    Args:
      kind: of the blocks.
      raw: their bytes.
    """
    if kind == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return values(unpack(kind, raw))
