"""In which band a score made again is expected, and whether it lies there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from experiments.runs import intervals

Verdict = Literal["within", "above", "below", "diverged", "not known"]
Band = tuple[float, float]


def chance(share: float, scored: int) -> float:
    """By how much two scores may differ by chance in the scored examples alone (95%).

    Args:
      share: of right answers, about; its standard error is sqrt(share (1 - share) / scored).
      scored: number of examples.
    """
    return 1.96 * math.sqrt(2 * share * (1 - share) / scored)


def center(values: Sequence[float], median: bool = False) -> float:
    """The mean over seeds, or their median."""
    return statistics.median(values) if median else statistics.fmean(values)


def band(values: Sequence[float], tolerance: float, median: bool = False) -> Band | None:
    """Where the mean of as many seeds lies in 95 of 100 cases, if they are drawn as these were.

    Two means of n seeds differ by t s sqrt(2 / n) at most, with the standard deviation s of the seeds and
    Student's t of n - 1 degrees of freedom. The band is never narrower than `tolerance` to each side, since
    equal seeds differ by less than new ones, but not by nothing on another processor.

    Args:
      values: of each seed; NaN where one diverged.
      tolerance: what one seed may differ by.
      median: whether the band is that of medians, which is drawn around theirs with the same width.

    Returns:
      The lowest and the highest; None if a seed diverged, or if there is one seed and no tolerance.
    """
    if not values or any(math.isnan(value) for value in values):
        return None
    if len(values) == 1 and not tolerance:
        return None
    middle, half = center(values, median), tolerance
    if len(values) > 1:  # the difference of two means spreads by sqrt(2) times as much as one
        half = max(half, math.sqrt(2) * intervals.mean(values).half)
    return middle - half, middle + half


def of_paper(printed: str, unit: float, tolerance: float) -> Band:
    """The band around a score of the paper: twice its printed spread, at least the tolerance.

    Args:
      printed: as in the paper, `95.1±.2`.
      unit: what the paper's scores are divided by to be a record's: 100 or 1.
      tolerance: of the record's units.
    """
    value, _, spread = printed.partition("±")
    half = max(2 * float(spread or 0) / unit, tolerance)
    return float(value) / unit - half, float(value) / unit + half


def verdict(values: Sequence[float], expected: Band | None, median: bool = False) -> Verdict:
    """Where the mean over seeds, or their median, lies."""
    if not values or any(math.isnan(value) for value in values):
        return "diverged"
    if expected is None:
        return "not known"
    middle = center(values, median)
    if middle < expected[0]:
        return "below"
    return "above" if middle > expected[1] else "within"
