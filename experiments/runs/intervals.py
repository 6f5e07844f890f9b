"""Means, shares, and slow-downs of timed passes, with 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit
from scipy.stats import binomtest

_LEVEL = 0.95


class Interval(NamedTuple):
    """A number with its confidence interval, `value - half` to `value + half`."""

    value: float
    half: float


def mean(values: Sequence[float]) -> Interval:
    """The mean of at least two values with the interval of Student's t."""
    array = np.asarray(values, np.float64)
    return Interval(float(array.mean()), _half(array))


def over_seeds(values: Sequence[float]) -> Interval:
    """As `mean`; of a single value the interval is unknown: NaN."""
    return mean(values) if len(values) > 1 else Interval(values[0], math.nan)


def share(right: int, count: int) -> tuple[float, float]:
    """The ends of Wilson's score interval for a probability, from `right` of `count` independent trials."""
    found = binomtest(right, count).proportion_ci(_LEVEL, method="wilson")
    return float(found.low), float(found.high)


def slow_down(seconds: Sequence[float], base: Sequence[float]) -> Interval:
    """By what share a contender's mean is above the base's: 0.2 for 20%.

    Both were timed in the same rounds, and what slows down a whole round changes the ratio little. So the
    interval is that of a ratio of paired means: to first order the error of R = mean(y) / mean(x) is that of
    the mean of y - R x, over the mean of x.

    Args:
      seconds: of the contender, by round.
      base: of the base, in the same rounds.
    """
    y, x = np.asarray(seconds, np.float64), np.asarray(base, np.float64)
    ratio = y.mean() / x.mean()
    return Interval(float(ratio - 1), _half(y - ratio * x) / float(x.mean()))


def _half(values: np.ndarray) -> float:
    count = len(values)
    quantile = float(stdtrit(count - 1, (1 + _LEVEL) / 2))
    return quantile * float(values.std(ddof=1)) / math.sqrt(count)
