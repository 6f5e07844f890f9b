"""Rank sweeps: what LoRA reaches at every rank, with the other values of its set-up searched too.

Tables 6 and 18 compare ranks at one learning rate and alpha. A sweep over ranks tries several at every
rank, since the best ones may differ, so here a rank has its best run and its best set-up. The runs of one
set-up differ in nothing but chance: the seed and, where it has a seed of its own, the order of the data.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Hashable, Iterable, Sequence

from experiments.paper.columns import HEADLINES, Column
from experiments.report.lora_set_up import (
    FIELDS,
    SetUp,
    Value,
    set_up_of,
    weights_of,
    weights_order,
)
from experiments.report.record import Record
from experiments.report.settings import distinctions, groups, setting

# What a sweep over ranks varies beside the seeds; everything else is equal in all its runs.
SWEPT = (
    "method.rank", "method.alpha", "method.scaling", "method.targets", "method.parts", "method.fused",
    "method.fused_sizes", "method.dropout", "method.init", "method.std", "learning_rate", "data.order_seed",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed of a record.

    Attributes:
      record: that it is in.
      seed: of everything random, except the order of the data where `order` is set.
      order: seed of the order of the data; None if the run's seed decides it.
      score: the task's headline in the unit of the tables; NaN if the run diverged.
      set_up: values of `FIELDS`.
    """

    record: Record
    seed: str
    order: int | None
    score: float
    set_up: SetUp


@dataclasses.dataclass(frozen=True)
class Point:
    """All runs of one choice of weights at one rank.

    Attributes:
      weights: letters of q, k, v, o, or the targets as text if others are adapted.
      rank: r.
      runs: at least one.
    """

    weights: str
    rank: int
    runs: tuple[Run, ...]

    @property
    def best(self) -> Run | None:
        """The run of the highest score, the first of several; None if all diverged."""
        return max(finite(self.runs), key=lambda run: run.score, default=None)

    @functools.cached_property
    def chosen(self) -> list[Run]:
        """The runs of the best set-up, those that diverged included."""
        by_set_up: dict[Hashable, list[Run]] = {}
        for run in self.runs:
            by_set_up.setdefault(run.set_up, []).append(run)
        return max(by_set_up.values(), key=_merit)

    @property
    def scores(self) -> list[float]:
        """Scores of the best set-up, without runs that diverged."""
        return [run.score for run in finite(self.chosen)]

    @property
    def median(self) -> float:
        """Of `scores`; there must be one."""
        return statistics.median(self.scores)


@dataclasses.dataclass(frozen=True)
class RankSweep:
    """LoRA runs of several ranks in one set-up.

    Attributes:
      name: model, task, and what sets it apart from other sweeps of the two.
      column: the headline score of the task.
      points: by weights and rank, in order.
      records: that it is made of.
      repeats: workdirs with runs that are left out, since another run has their weights, rank, set-up
        and seed.
    """

    name: str
    column: Column
    points: tuple[Point, ...]
    records: tuple[Record, ...]
    repeats: tuple[str, ...]

    def values(self, field: str) -> list[Value]:
        """The different values of one of `FIELDS`: numbers in order, None, then text."""
        index = FIELDS.index(field)
        values = {run.set_up[index] for point in self.points for run in point.runs}
        return sorted(values, key=_value_order)


def _value_order(value: Value) -> tuple[bool, bool, float, str]:
    if isinstance(value, str):
        return True, False, 0, value
    return False, value is None, value or 0, ""


def finite(runs: Iterable[Run]) -> list[Run]:
    """The runs that did not diverge."""
    return [run for run in runs if math.isfinite(run.score)]


def _merit(runs: Sequence[Run]) -> tuple[float, float, int]:
    """Orders set-ups: one whose seeds diverge must not win by the seeds that are left."""
    scores = [run.score for run in finite(runs)]
    diverged = [-math.inf] * (len(runs) - len(scores))
    return statistics.median(scores + diverged), statistics.median(scores or diverged), len(scores)


def find_sweeps(records: Sequence[Record]) -> list[RankSweep]:
    """The sweeps: LoRA runs with a headline score, equal in all but `SWEPT`, of several ranks."""
    scored = (record for record in records if record.rank and _has_headline(record))
    alike_runs = groups(scored, lambda r: (r.task, r.model, setting(r, SWEPT)))
    curves = [group for _, group in alike_runs if _has_curve(group)]
    # Only what all runs of a sweep have in common may tell it from other sweeps.
    common = [
        dataclasses.replace(group[0], config=json.loads(setting(group[0], SWEPT)))
        for group in curves
    ]
    result = []
    for group, shared in zip(curves, common, strict=True):
        alike = [r for r in common if (r.task, r.model) == (shared.task, shared.model)]
        apart = next(d for r, d in zip(alike, distinctions(alike), strict=True) if r is shared)
        score = f"{shared.task} {HEADLINES[shared.task].metric}"
        name = (shared.model, score, group[0].evaluated_on, apart)
        result.append(_sweep(", ".join(filter(None, name)), group))
    return result


def _has_headline(record: Record) -> bool:
    column = HEADLINES.get(record.task)
    return record.method == "lora" and column is not None and column.metric in record.scores


def _has_curve(records: Sequence[Record]) -> bool:
    """Whether one choice of weights has two ranks."""
    places = {(weights_of(record), record.rank) for record in records}
    return len({weights for weights, _ in places}) < len(places)


def _sweep(name: str, records: Sequence[Record]) -> RankSweep:
    column = HEADLINES[records[0].task]
    scale = 100 if column.percent else 1
    runs: dict[tuple[str, int], dict[Hashable, Run]] = {}
    repeats = []
    for record in records:
        at_place = runs.setdefault((weights_of(record), record.rank or 0), {})
        set_up, order = set_up_of(record), record.config["data"].get("order_seed")
        for seed, value in zip(record.seeds, record.scores[column.metric], strict=True):
            run = Run(record, seed, order, scale * value, set_up)
            if at_place.setdefault((set_up, seed, order), run) is not run:
                repeats.append(record.workdir)
    places = sorted(runs, key=lambda place: (weights_order(place[0]), place[1]))
    points = tuple(Point(*place, tuple(runs[place].values())) for place in places)
    return RankSweep(name, column, points, tuple(records), tuple(dict.fromkeys(repeats)))
