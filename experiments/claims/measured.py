"""What is measured for a claim: a number for every seed, and what stands against judging by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from experiments.compare import optimum
from experiments.compare.statistics import Row
from experiments.runs import intervals
from experiments.runs.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Measured:
    """A quantity.

    Attributes:
      by_seed: its values; none if it could not be measured.
      doubt: why nothing can be concluded from it; "" if something can.
    """

    by_seed: Mapping[int, float]
    doubt: str = ""

    @property
    def interval(self) -> Interval | None:
        """The mean with its 95% interval, which is NaN of one seed; None if it could not be measured."""
        return intervals.over_seeds(list(self.by_seed.values())) if self.by_seed else None


def log_ratio(one: Row, other: Row, *, smaller_is_better: bool) -> Measured:
    """The logarithm (base 10) of one method's best learning rate over another's."""
    reasons = [optimum.missing(row, smaller_is_better=smaller_is_better) for row in (one, other)]
    if any(reasons):
        return Measured({}, _joined(*reasons))
    found = optimum.ratio_by_seed(one, other, smaller_is_better=smaller_is_better)
    return Measured({}, _other_seeds(one.name, other.name)) if found is None else Measured(found)


def worse_by(one: Row, other: Row, *, smaller_is_better: bool) -> Measured:
    """By how much one method's best score is worse than another's, each at its own best rate.

    At an end of the grid there is a value, in doubt: the true best score may be better.
    """
    if one.best is None or other.best is None:
        gone = [row.name for row in (one, other) if row.best is None]
        reasons = [f"{name} has no rate at which all seeds ended with a score" for name in gone]
        return Measured({}, _joined(*reasons))
    first, second = one.best.scores, other.best.scores
    if first.keys() != second.keys():
        return Measured({}, _other_seeds(one.name, other.name))
    sign = 1 if smaller_is_better else -1
    values = {seed: sign * (first[seed] - second[seed]) for seed in sorted(first)}
    ends = [
        f"the best rate of {row.name} is "
        f"{'the only one' if row.edge == 'only' else f'the {row.edge} of its grid'}"
        for row in (one, other)
        if row.edge
    ]
    return Measured(values, _joined(*ends))


def more(one: Measured, other: Measured, flag: str) -> Measured:
    """By how much one quantity is larger than the same one of the main comparison, paired by seed.

    Args:
      one: of another comparison.
      other: of the main one.
      flag: that names the other comparison.
    """
    doubts = [f"{name}: {own.doubt}" for name, own in ((flag, one), ("--main", other)) if own.doubt]
    if one.by_seed and other.by_seed and one.by_seed.keys() != other.by_seed.keys():
        return Measured({}, _joined(*doubts, _other_seeds(flag, "--main")))
    both = one.by_seed if other.by_seed else {}
    return Measured(
        {seed: one.by_seed[seed] - other.by_seed[seed] for seed in both}, _joined(*doubts)
    )


def _other_seeds(one: str, other: str) -> str:
    return f"{one} and {other} have scores of different seeds"


def _joined(*reasons: str) -> str:
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))
