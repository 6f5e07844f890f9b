"""Whether this project's runs have an order of methods that the paper has."""

from __future__ import annotations

from typing import Literal

from experiments.runs.intervals import Interval

Verdict = Literal["confirmed", "refuted", "open", "no order in the paper"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "open", "no order in the paper")


def verdict(paper: float, ours: Interval | None, spread: float) -> Verdict:
    """What a difference of two scores here says of the paper's.

    Args:
      paper: the paper's difference.
      ours: this project's with its interval; None, or NaN in the half, where there are no two seeds. A half
        of 0 is none either: of two seeds and few examples differences are equal by chance.
      spread: of the paper's scores; a difference within it is no order.
    """
    if abs(paper) <= spread + 1e-9:  # they are printed with one digit
        return "no order in the paper"
    if ours is None or not 0 < ours.half < abs(ours.value):
        return "open"
    return "confirmed" if paper * ours.value > 0 else "refuted"
