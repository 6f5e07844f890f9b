"""When a claim is confirmed, refuted or open: rules about the two ends of a 95% interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

from experiments.claims.measured import Measured

# Less than this is no loss that matters: of a loss in nats, of an accuracy (0 to 1) one point in a hundred.
MARGIN = 0.01

Verdict = Literal["confirmed", "refuted", "open"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
      text: for pages.
      judge: the verdict from the lower and the upper end of an interval.
    """

    text: str
    judge: Callable[[float, float], Verdict]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim with what was measured.

    Attributes:
      number: of the claim; several measurements may belong to one.
      quantity: what was measured, for pages.
      ratio: whether it is the logarithm (base 10) of a ratio; else a difference of scores.
      measured: its values.
      rule: that it is judged by.
    """

    number: int
    quantity: str
    ratio: bool
    measured: Measured
    rule: Rule

    @property
    def why_open(self) -> str:
        """What stands against any judgement; "" for nothing but perhaps a wide interval."""
        interval = self.measured.interval
        if not self.measured.doubt and interval is not None and math.isnan(interval.half):
            return "one seed has no interval"
        return self.measured.doubt

    @property
    def verdict(self) -> Verdict:
        """By the rule; open where something stands against judging."""
        interval = self.measured.interval
        if self.why_open or interval is None:
            return "open"
        return self.rule.judge(interval.value - interval.half, interval.value + interval.half)


def within(least: float, most: float, shown: str) -> Rule:
    """A ratio, given as its logarithm, lies between two factors.

    Args:
      least: the smaller factor.
      most: the larger factor.
      shown: both as pages have them.
    """
    bottom, top = math.log10(least), math.log10(most)

    def judge(low: float, high: float) -> Verdict:
        if bottom <= low and high <= top:
            return "confirmed"
        return "refuted" if high < bottom or low > top else "open"

    return Rule(f"confirmed wholly in {shown}, refuted wholly outside", judge)


def no_worse(margin: str) -> Rule:
    """A difference, positive where it is a loss, is below the margin; `margin` is how pages show it."""

    def judge(low: float, high: float) -> Verdict:
        if high < MARGIN:
            return "confirmed"
        return "refuted" if low > MARGIN else "open"

    return Rule(f"confirmed wholly below {margin}, refuted wholly above it", judge)


def worse(margin: str) -> Rule:
    """A difference, positive where it is a loss, is above zero; `margin` is how pages show it."""

    def judge(low: float, high: float) -> Verdict:
        if low > 0:
            return "confirmed"
        return "refuted" if high < MARGIN else "open"

    return Rule(f"confirmed wholly above 0, otherwise refuted wholly below {margin}", judge)


def larger() -> Rule:
    """A ratio, given as its logarithm, is above 1."""

    def judge(low: float, high: float) -> Verdict:
        if low > 0:
            return "confirmed"
        return "refuted" if high < 0 else "open"

    return Rule("confirmed wholly above 1x, refuted wholly below 1x", judge)
