"""Where between the tried learning rates a method's best one lies: the top of a parabola, for every seed.

Grids of rates are coarse, a factor of about 3 from one to the next. The score against the logarithm of the
rate is nearly a parabola around its best value; through the best of the tried rates and its two neighbours
there is one, and its top is the estimate. Where the best rate is an end of the grid there is none. Nor is
there where training fails right beside it: such a score says nothing of the curve around the top, but would
alone decide where a parabola's top lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.compare.statistics import AtRate, Row
from experiments.runs import intervals
from experiments.runs.intervals import Interval

_FAILS = 10  # times as much worse as the worst rate on the other side is


def of_seed(rates: Sequence[AtRate], seed: int, *, smaller_is_better: bool) -> float | None:
    """The logarithm (base 10) of a seed's best learning rate.

    Args:
      rates: of a method, from low to high.
      seed: of the runs.
      smaller_is_better: whether a smaller score is the better one.

    Returns:
      None if the best of the tried rates is an end of the grid, or the run at a neighbour has no score or
      failed.
    """
    best = _best(rates, seed, smaller_is_better)
    if best is None or _is_end(best, rates) or _fails_beside(rates, seed, best):
        return None
    known = [(math.log10(at.rate), at.scores.get(seed)) for at in rates[best - 1 : best + 2]]
    x, y = zip(*known, strict=True)
    if None in y:
        return None
    sign = 1 if smaller_is_better else -1
    second, first, _ = np.polyfit(np.asarray(x) - x[1], sign * np.asarray(y, np.float64), 2)
    return float(x[1] - first / (2 * second)) if second > 0 else float(x[1])


def _best(rates: Sequence[AtRate], seed: int, smaller_is_better: bool) -> int | None:
    """Where among the rates a seed's best one is, the lower one of equals; None without any score."""
    sign = 1 if smaller_is_better else -1
    scored = [(sign * at.scores[seed], i) for i, at in enumerate(rates) if seed in at.scores]
    return min(scored)[1] if scored else None


def _fails_beside(rates: Sequence[AtRate], seed: int, best: int) -> bool:
    """Whether a neighbour is worse by so much more than all rates on the other side that training failed."""
    top = rates[best].scores[seed]
    sides = rates[:best], rates[best + 1 :]
    worse = [[abs(at.scores[seed] - top) for at in side if seed in at.scores] for side in sides]
    beside = [side[place].scores.get(seed) for side, place in zip(sides, (-1, 0), strict=True)]
    return any(
        value is not None and others and abs(value - top) > _FAILS * max(others)
        for value, others in zip(beside, reversed(worse), strict=True)
    )


def _is_end(place: int, rates: Sequence[AtRate]) -> bool:
    return place in (0, len(rates) - 1)


def missing(row: Row, *, smaller_is_better: bool) -> str:
    """Why seeds of a method have no best rate, for a page; "" if all have one."""
    found = by_seed(row, smaller_is_better=smaller_is_better)
    if not found:
        return f"no run of {row.name} has a score"
    if lost := _without_scores(row, found):
        ending = "s" * (lost != 1)
        return f"{lost} seed{ending} of {row.name} {'has' if lost == 1 else 'have'} no score at any rate"
    without = [seed for seed, value in found.items() if value is None]
    best = {seed: _best(row.rates, seed, smaller_is_better) for seed in without}
    ends: list[int] = []
    beside: list[int] = []
    fail: list[int] = []
    for seed, place in best.items():
        assert place is not None
        if _is_end(place, row.rates):
            ends.append(seed)
        else:
            (fail if _fails_beside(row.rates, seed, place) else beside).append(seed)
    words = {
        "the best rate of {} is at an end of its grid for {}": ends,
        "{} has no score beside its best rate for {}": beside,
        "training of {} fails right beside its best rate for {}": fail,
    }
    return "; ".join(text.format(row.name, _seeds(seeds)) for text, seeds in words.items() if seeds)


def _without_scores(row: Row, found: Mapping[int, float | None]) -> int:
    """How many seeds have no score at any rate, so that their runs are known by number only."""
    return max(len(at.scores) + at.failed for at in row.rates) - len(found)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def of_row(row: Row, *, smaller_is_better: bool) -> Interval | None:
    """The mean over seeds, as a logarithm of base 10; None if a seed has none."""
    found = by_seed(row, smaller_is_better=smaller_is_better)
    if not found or None in found.values() or _without_scores(row, found):
        return None
    return intervals.over_seeds(list(found.values()))  # type: ignore[arg-type]


def by_seed(row: Row, *, smaller_is_better: bool) -> dict[int, float | None]:
    """The logarithm of the best rate of every seed."""
    seeds = sorted({seed for at in row.rates for seed in at.scores})
    return {s: of_seed(row.rates, s, smaller_is_better=smaller_is_better) for s in seeds}


def ratio(one: Row, other: Row, *, smaller_is_better: bool) -> Interval | None:
    """The logarithm of one method's best rate over another's, paired by seed; None if a seed lacks one."""
    found = ratio_by_seed(one, other, smaller_is_better=smaller_is_better)
    return None if found is None else intervals.over_seeds(list(found.values()))


def ratio_by_seed(one: Row, other: Row, *, smaller_is_better: bool) -> dict[int, float] | None:
    """The same for every seed; None if a seed lacks one, or the methods have other seeds."""
    first, second = (by_seed(row, smaller_is_better=smaller_is_better) for row in (one, other))
    if first.keys() != second.keys() or not first:
        return None
    if _without_scores(one, first) or _without_scores(other, second):
        return None
    pairs = {seed: (first[seed], second[seed]) for seed in first}
    found = {s: x - y for s, (x, y) in pairs.items() if x is not None and y is not None}
    return found if len(found) == len(pairs) else None


def as_rate(value: Interval | None) -> str:
    """`1.2e-03 (8e-04 to 1.8e-03)` of a logarithm; a dash for None."""
    if value is None:
        return "-"
    mean = f"{10**value.value:.2g}"
    if math.isnan(value.half):
        return mean
    low, high = (10 ** (value.value + side * value.half) for side in (-1, 1))
    return f"{mean} ({low:.2g} to {high:.2g})"
