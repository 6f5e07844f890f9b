"""Every method at its best size: which one is better, in the paper and in this project's runs.

The paper's Figure 2 shows scores of five methods against their numbers of trained values. What can be
compared with other models is the order of the methods.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.paper.columns import COLUMNS, HEADLINES, Column
from experiments.paper.scores import FLUCTUATIONS, SCORES, ScoreRow, parse
from experiments.report.orders import VERDICTS, Verdict, verdict
from experiments.report.panels import Panel
from experiments.report.record import Record
from experiments.report.settings import pooled
from experiments.runs import intervals
from experiments.runs.intervals import Interval

# Where the paper compares the methods: the table, and the model in it.
PAPER = {"wikisql": (15, "gpt3-175b"), "mnli_text": (15, "gpt3-175b"), "e2e": (3, "gpt2-medium")}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of several methods on one task, with one model and as many examples.

    Attributes:
      panel: task, model and score.
      records: of at least two methods, seeds pooled.
    """

    panel: Panel
    records: tuple[Record, ...]

    @property
    def column(self) -> Column:
        """The score: the task's headline, or the validation loss."""
        return COLUMNS[18][0] if self.panel.loss else HEADLINES[self.panel.task]

    def scores(self, record: Record) -> dict[str, float]:
        """By seed, in the unit of the tables; NaN where the seed diverged."""
        scale = 100 if self.column.percent else 1
        values = record.scores[self.column.metric]
        return {seed: scale * v for seed, v in zip(record.seeds, values, strict=True)}

    def best(self) -> dict[str, dict[str, float]]:
        """Scores by seed of every method at its best size and set-up, by the mean over seeds.

        Sizes at which a seed diverged do not count.
        """
        sign = -1 if self.panel.loss else 1
        found: dict[str, dict[str, float]] = {}
        for record in self.records:
            scores = self.scores(record)
            if not all(map(math.isfinite, scores.values())):
                continue
            if (
                record.method not in found
                or sign * (_mean(scores) - _mean(found[record.method])) > 0
            ):
                found[record.method] = scores
        return found


@dataclasses.dataclass(frozen=True)
class Order:
    """Two methods.

    Attributes:
      first, second: names.
      paper: by how much the first one's best score is above the second one's in the paper.
      ours: by how much it is better here, with its 95% interval, NaN for one seed; below 0 if it is worse.
      verdict: see `orders.verdict`.
    """

    first: str
    second: str
    paper: float
    ours: Interval
    verdict: Verdict


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """What can be compared on the tasks of `PAPER`; on E2E by BLEU and by validation loss."""
    groups: dict[Panel, list[Record]] = {}
    for record in records:
        if record.task not in PAPER or not record.split or record.examples is None:
            continue
        for loss in (False, True) if record.task == "e2e" else (False,):
            panel = Panel(
                record.task, record.model, record.examples, record.evaluated_on, loss=loss
            )
            if panel.metric in record.scores:
                groups.setdefault(panel, []).append(record)
    ordered = sorted(groups.items(), key=lambda item: list(PAPER).index(item[0].task))
    return [
        Comparison(panel, tuple(pooled(group)))
        for panel, group in ordered
        if len({record.method for record in group}) > 1
    ]


def paper_rows(task: str) -> list[tuple[ScoreRow, float, float]]:
    """The paper's rows of a task of `PAPER`, each with its score and the spread of it, 0 if none is given."""
    table, model = PAPER[task]
    index = COLUMNS[table].index(HEADLINES[task])
    parsed = [(row, *parse(row.scores[index])) for row in SCORES[table] if row.row.model == model]
    return [(row, float(value), float(spread or 0)) for row, value, spread in parsed]


def orders(comparison: Comparison) -> list[Order]:
    """Every two methods that the paper and the runs both have, in the paper's order."""
    best = comparison.best()
    rows = paper_rows(comparison.panel.task)
    in_paper: dict[str, float] = {}
    for row, score, _ in rows:
        in_paper[row.row.method.name] = max(score, in_paper.get(row.row.method.name, score))
    fluctuation = FLUCTUATIONS.get(comparison.panel.task, max(spread for *_, spread in rows))
    found = []
    for first, second in itertools.combinations([name for name in in_paper if name in best], 2):
        quoted = in_paper[first] - in_paper[second]
        ours = difference(best[first], best[second])
        if comparison.panel.loss:
            ours = Interval(-ours.value, ours.half)
        found.append(Order(first, second, quoted, ours, verdict(quoted, ours, fluctuation)))
    return found


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Interval:
    """Of two means, with the 95% interval of the differences at the seeds that both have, if these are two.

    Args:
      one: scores by seed.
      other: those that are subtracted.
    """
    seeds = [seed for seed in one if seed in other]
    if seeds:
        return intervals.over_seeds([one[seed] - other[seed] for seed in seeds])
    return Interval(_mean(one) - _mean(other), math.nan)


def counted(found: Sequence[Order]) -> dict[str, int]:
    """How many pairs have each verdict."""
    return {name: sum(o.verdict == name for o in found) for name in VERDICTS}


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)
