"""The numbers that codes of four and eight bits stand for, as bitsandbytes has them.

NF4 and double quantisation: Dettmers et al. 2023 (QLoRA), section 3. The 8-bit map: Dettmers 2015.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

# Quantiles of N(0, 1) that have equal numbers of values between them, with an exact zero.
NF4: Float32[np.ndarray, " codes"] = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip

# A sign, two bits of exponent, one of fraction; in units of the largest, 12.
_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32)
FP4: Float32[np.ndarray, " codes"] = np.concatenate([_FP4, 0 - _FP4]) / np.float32(12)


def dynamic_map() -> Float32[np.ndarray, " codes"]:
    """The signed 8-bit map in which double quantisation stores the scales, in ascending order.

    Numbers of seven decades; the fraction has the more bits the larger the decade.
    """
    magnitudes = []
    for decade in range(7):
        bounds = _evenly(2**decade)
        means = (bounds[:-1] + bounds[1:]) / np.float32(2)
        magnitudes.append(np.float32(10.0 ** (decade - 6)) * means)
    positive = np.concatenate(magnitudes)
    ends = np.array([0, 1], np.float32)
    return np.sort(np.concatenate([positive, -positive, ends]))


def _evenly(parts: int) -> Float32[np.ndarray, " bounds"]:
    """Bounds of equal parts from 0.1 to 1, counted from the nearer end as PyTorch's linspace does."""
    first, last = float(np.float32(0.1)), 1.0
    step = float(np.float32((last - first) / parts))
    counts = np.arange(parts + 1)
    upwards, downwards = first + step * counts, last - step * counts[::-1]
    bounds: np.ndarray = np.where(counts < (parts + 1) // 2, upwards, downwards)
    return bounds.astype(np.float32)


def nearest(
    values: Float32[np.ndarray, "*shape"], book: Float32[np.ndarray, " codes"]
) -> UInt8[np.ndarray, "*shape"]:
    """The code of the number of `book` that is nearest to each value; of two, the lesser number's.

    Args:
      values: to be coded.
      book: the numbers by code, in any order.
    """
    order = np.argsort(book, kind="stable").astype(np.uint8)
    codes = np.zeros(values.shape, np.uint8)  # comparisons are several times faster than a search
    for bound in _midpoints(book[order]):
        codes += values > bound
    chosen: np.ndarray = order[codes]
    return chosen


def nearest_of_map(
    values: Float32[np.ndarray, "*shape"], book: Float32[np.ndarray, " codes"]
) -> UInt8[np.ndarray, "*shape"]:
    """The same for an ascending map of 256 numbers and values from -1 to 1.

    As bitsandbytes does it on CPUs: values are rounded to 65,536 steps first. On GPUs it does not, and
    gives one in a thousand values the code beside this one.
    """
    steps = np.float32(65535)
    bins = np.float32(-1) + np.float32(2) * np.arange(65536, dtype=np.float32) / steps
    codes = np.searchsorted(_midpoints(book), bins).astype(np.uint8)
    half = (np.clip(values, -1, 1) + np.float32(1)) * np.float32(0.5)
    chosen: np.ndarray = codes[(half * steps + np.float32(0.5)).astype(np.uint16)]
    return chosen


def _midpoints(book: Float32[np.ndarray, " codes"]) -> Float32[np.ndarray, " bounds"]:
    middle: np.ndarray = (book[:-1] + book[1:]) / np.float32(2)
    return middle
