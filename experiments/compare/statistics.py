"""What the runs of a comparison say: the best learning rates, means, differences, with 95% intervals."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from experiments.compare.runs import Run
from experiments.runs import intervals
from experiments.runs.intervals import Interval

REFERENCE = "lora"  # the method that the others are compared with


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtRate:
    """A method at one of its learning rates.

    Attributes:
      rate: the learning rate.
      scores: by seed, of the runs that have one.
      diverged: number of runs that diverged.
      failed: number of runs without a score: those that diverged, and whose score is no number.
    """

    rate: float
    scores: Mapping[int, float]
    diverged: int
    failed: int

    @property
    def interval(self) -> Interval | None:
        """The mean over seeds with its interval; None unless all runs have a score."""
        return None if self.failed else intervals.over_seeds(list(self.scores.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A method, all told.

    Attributes:
      name: of its grid.
      trained: values without the task's head.
      rates: results at all learning rates, from low to high.
      best: those at the chosen one; None if runs failed at every rate.
      difference: to the reference at its own best rate, paired by seed; None for the reference itself, or
        if one of the two has no best rate.
      step_seconds: median over the runs.
      times: step_seconds as times the reference's; NaN without it.
    """

    name: str
    trained: int
    rates: tuple[AtRate, ...]
    best: AtRate | None
    difference: Interval | None = None
    step_seconds: float
    times: float = math.nan

    @property
    def score(self) -> Interval | None:
        """At the best rate."""
        return None if self.best is None else self.best.interval

    @property
    def diverged(self) -> int:
        """Number of runs that diverged, at all rates."""
        return sum(at.diverged for at in self.rates)

    @property
    def edge(self) -> str:
        """`lowest` or `highest` where the best rate is at an end of the grid, `only` of one; else ""."""
        if self.best is None:
            return ""
        if len(self.rates) == 1:
            return "only"
        ends = {self.rates[0].rate: "lowest", self.rates[-1].rate: "highest"}
        return ends.get(self.best.rate, "")


def contains_zero(difference: Interval) -> bool | None:
    """Whether an interval contains zero; None if it is unknown."""
    return None if math.isnan(difference.half) else abs(difference.value) <= difference.half


def rows(runs: Mapping[str, Sequence[Run]], *, smaller_is_better: bool) -> list[Row]:
    """One row for each method, the best score first; methods without one come last.

    Args:
      runs: of every method, by name.
      smaller_is_better: whether a smaller score is the better one.
    """
    alone = {name: _row(name, own, smaller_is_better) for name, own in runs.items()}
    reference = alone.get(REFERENCE)
    compared = [_compared(row, reference) for row in alone.values()]
    sign = 1 if smaller_is_better else -1
    return sorted(
        compared, key=lambda row: math.inf if row.score is None else sign * row.score.value
    )


def _row(name: str, runs: Sequence[Run], smaller_is_better: bool) -> Row:
    at = tuple(
        _at_rate(rate, [run for run in runs if run.rate == rate])
        for rate in sorted({run.rate for run in runs})
    )
    seconds = [run.step_seconds for run in runs if math.isfinite(run.step_seconds)]
    return Row(
        name=name,
        trained=runs[0].trained,
        rates=at,
        best=_best(at, smaller_is_better),
        step_seconds=statistics.median(seconds) if seconds else math.nan,
    )


def _at_rate(rate: float, runs: Sequence[Run]) -> AtRate:
    scores = {run.seed: run.score for run in runs if run.score is not None}
    diverged = sum(run.diverged for run in runs)
    return AtRate(rate=rate, scores=scores, diverged=diverged, failed=len(runs) - len(scores))


def _best(rates: Sequence[AtRate], smaller_is_better: bool) -> AtRate | None:
    """The rate with the best mean, of those at which no run failed; the lower one of equals."""
    whole = [(at.interval.value, at) for at in rates if at.interval is not None]
    choose = min if smaller_is_better else max
    return choose(whole, key=lambda pair: pair[0])[1] if whole else None


def _compared(row: Row, reference: Row | None) -> Row:
    if reference is None:
        return row
    whole = reference.step_seconds
    times = row.step_seconds / whole if whole else math.nan
    difference = None
    if row is not reference and row.best is not None and reference.best is not None:
        own, other = row.best.scores, reference.best.scores
        difference = intervals.over_seeds([own[seed] - other[seed] for seed in sorted(own)])
    return dataclasses.replace(row, times=times, difference=difference)
