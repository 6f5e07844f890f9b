"""Values packed into the fields of GGUF's blocks, rounded as ggml's reference does it (ggml-quants.c)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_HALF = np.float16


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


# The fields of `layouts.LAYOUTS`, from values (*blocks, values of a block).
PACK: Mapping[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "Q4_0": _pack_q4_0,
    "Q4_1": _pack_q4_1,
    "Q5_0": _pack_q5_0,
    "Q5_1": _pack_q5_1,
    "Q8_0": _pack_q8_0,
}
