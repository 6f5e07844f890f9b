"""The claims of "LoRA Without Regret" that comparisons can be asked about, each with its measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from experiments.claims.measured import Measured, log_ratio, more, worse_by
from experiments.claims.regret import REFERENCE_RANK, alike, full, ranks
from experiments.claims.rules import MARGIN, Claim, larger, no_worse, within, worse
from experiments.compare.page import Unit
from experiments.compare.record import Comparison
from experiments.compare.statistics import Row

STATEMENTS: Mapping[int, str] = {
    1: "LoRA's best learning rate is about ten times that of full fine-tuning",
    2: "LoRA's best learning rate does not depend on the rank",
    3: "With little data LoRA of a high rank loses nothing against full fine-tuning",
    4: "LoRA of a low rank falls behind",
    5: "LoRA on attention alone is worse than on all layers with as many trained values",
    6: "LoRA on the feed-forward blocks alone is as good as on all layers with as many trained values",
    7: "With a large batch LoRA loses more against full fine-tuning",
    8: "In short runs LoRA's best learning rate is a larger multiple of that of full fine-tuning",
}
TEN_TIMES = (5.0, 20.0)  # what counts as about ten times
SAME_RATE = (0.5, 2.0)  # and as the same rate
_LOWEST = 1  # the rank that is said to fall behind
_HIGH = 32  # from which on a rank is called high


class Comparisons(NamedTuple):
    """What is judged by; None where there is none."""

    main: Comparison
    large_batch: Comparison | None = None
    short: Comparison | None = None


class LeftOut(NamedTuple):
    """A claim of which the comparisons say nothing."""

    number: int
    why: str


def judged(found: Comparisons) -> list[Claim | LeftOut]:
    """All claims, in the order of their numbers."""
    main = found.main
    return [
        *_ten_times(main),
        _same_rate(main),
        _high_rank(main),
        _low_rank(main),
        *_parts(main, 5, "attention"),
        *_parts(main, 6, "mlp"),
        *_large_batch(main, found.large_batch),
        *_short(main, found.short),
    ]


def _ten_times(main: Comparison) -> list[Claim | LeftOut]:
    rule = within(*TEN_TIMES, "5x to 20x")
    return [
        Claim(
            number=1, quantity=f"best rate, rank {rank} over full", ratio=True,
            measured=_ratio(main, row, full(main)), rule=rule,
        )
        for rank, row in ranks(main).items()
    ]  # fmt: skip


def _same_rate(main: Comparison) -> Claim | LeftOut:
    low, lowest = next(iter(ranks(main).items()))
    high, highest = _highest(main)
    if low == high:
        return LeftOut(2, "there is one rank")
    return Claim(
        number=2, quantity=f"best rate, rank {high} over rank {low}", ratio=True,
        measured=_ratio(main, highest, lowest), rule=within(*SAME_RATE, "1/2x to 2x"),
    )  # fmt: skip


def _high_rank(main: Comparison) -> Claim | LeftOut:
    high, highest = _highest(main)
    if high < _HIGH:
        return LeftOut(3, f"it needs a rank of {_HIGH} or more, and the highest is {high}")
    return Claim(
        number=3, quantity=f"rank {high} worse than full by", ratio=False,
        measured=_worse(main, highest, full(main)), rule=no_worse(_margin(main)),
    )  # fmt: skip


def _low_rank(main: Comparison) -> Claim | LeftOut:
    high, highest = _highest(main)
    low = ranks(main).get(_LOWEST)
    if low is None or high < _HIGH:
        return LeftOut(4, f"it needs rank {_LOWEST} and one of {_HIGH} or more")
    return Claim(
        number=4, quantity=f"rank {_LOWEST} worse than rank {high} by", ratio=False,
        measured=_worse(main, low, highest), rule=worse(_margin(main)),
    )  # fmt: skip


def _parts(main: Comparison, number: int, prefix: str) -> list[Claim | LeftOut]:
    """LoRA on some layers against all layers, for every pair with equal numbers of trained values."""
    pairs = alike(main, prefix)
    if isinstance(pairs, str):
        return [LeftOut(number, pairs)]
    rule = worse(_margin(main)) if prefix == "attention" else no_worse(_margin(main))
    return [
        Claim(
            number=number, quantity=f"`{some.name}` worse than `{whole.name}` by", ratio=False,
            measured=_worse(main, some, whole), rule=rule,
        )
        for whole, some in pairs
    ]  # fmt: skip


def _large_batch(main: Comparison, other: Comparison | None) -> list[Claim | LeftOut]:
    shared = _shared(main, other)
    if other is None or not shared:
        return [LeftOut(7, _lacking("--large_batch", other))]
    return [
        Claim(
            number=7, quantity=f"how much more than in --main rank {rank} is worse than full", ratio=False,
            measured=more(
                _worse(other, ranks(other)[rank], full(other)),
                _worse(main, ranks(main)[rank], full(main)),
                "--large_batch",
            ),
            rule=worse(_margin(main)),
        )
        for rank in shared
    ]  # fmt: skip


def _short(main: Comparison, other: Comparison | None) -> list[Claim | LeftOut]:
    shared = _shared(main, other)
    if other is None or not shared:
        return [LeftOut(8, _lacking("--short", other))]
    return [
        Claim(
            number=8, quantity=f"multiple of full's best rate at rank {rank}, over that in --main",
            ratio=True,
            measured=more(
                _ratio(other, ranks(other)[rank], full(other)),
                _ratio(main, ranks(main)[rank], full(main)),
                "--short",
            ),
            rule=larger(),
        )
        for rank in shared
    ]  # fmt: skip


def _shared(main: Comparison, other: Comparison | None) -> list[int]:
    """Rank 8 and the highest one, of those that both comparisons have."""
    both = sorted(ranks(main).keys() & ranks(other).keys()) if other is not None else []
    return [rank for rank in both if rank in (REFERENCE_RANK, both[-1])]


def _lacking(flag: str, other: Comparison | None) -> str:
    return f"it needs {flag}" if other is None else f"--main and {flag} have no rank in common"


def _highest(main: Comparison) -> tuple[int, Row]:
    return list(ranks(main).items())[-1]


def _ratio(comparison: Comparison, one: Row, other: Row) -> Measured:
    return log_ratio(one, other, smaller_is_better=comparison.smaller_is_better)


def _worse(comparison: Comparison, one: Row, other: Row) -> Measured:
    return worse_by(one, other, smaller_is_better=comparison.smaller_is_better)


def _margin(comparison: Comparison) -> str:
    """As pages show it, in the unit of the scores."""
    unit = Unit(comparison.headline, comparison.smaller_is_better)
    return f"{unit.factor * MARGIN:g}"
