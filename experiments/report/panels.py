"""What the plots of score against trained values show: panels and their points."""

from __future__ import annotations

import dataclasses
import math

from experiments.paper.columns import HEADLINES
from experiments.paper.counts import printed
from experiments.paper.scores import SCORES
from experiments.report.settings import setting
from experiments.report.tables import Cell, Table

_PAPER_MODELS = {row.row.model for rows in SCORES.values() for row in rows}


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one panel compares: scores of one model on one task, after training on as many examples.

    Attributes:
      task: name.
      model: label.
      examples: of training; None for the model without adaptation.
      evaluated_on: see `Record.evaluated_on`.
      loss: whether scores are losses on the validation split, in place of the task's headline.
      table: number of the paper's table, if all points are from there; else 0.
    """

    task: str
    model: str
    examples: int | None
    evaluated_on: str = ""
    loss: bool = False
    table: int = 0

    @property
    def metric(self) -> str:
        """Name of the scores."""
        return "loss" if self.loss else HEADLINES[self.task].metric

    @property
    def title(self) -> str:
        """Two lines: task and model, then training and evaluation."""
        name = HEADLINES[self.task].title if HEADLINES[self.task].metric != "bleu" else self.task
        if self.table:
            return f"{name}, {self.model}\nthe paper, Table {self.table}"
        scored = f", {self.evaluated_on}" * bool(self.evaluated_on)
        trained = f"{self.examples:,} training examples" if self.examples else "not trained"
        return f"{name}, {self.model}\n{trained}{scored}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A score of a method.

    Attributes:
      method: name.
      trained: number of trained values; 0 where nothing but the head trains.
      score: in the unit of the table; NaN if a seed diverged.
      std: over seeds; 0 if it is not known.
      paper: whether the score is the paper's.
      setting: equal for runs that a line may join; "" for the paper's.
    """

    method: str
    trained: int
    score: float
    std: float
    paper: bool
    setting: str


def panels(table: Table) -> dict[Panel, list[Point]]:
    """The points of every panel.

    The model without adaptation and the paper's points are in all panels of their task and model. A panel
    of one point compares nothing and is left out.
    """
    records = {record.workdir: record for record in table.records}
    result: dict[Panel, list[Point]] = {}
    everywhere: list[tuple[Panel, Point]] = []
    for cell in table.cells:
        column = HEADLINES.get(cell.task_or_split)
        if column is None or cell.metric != column.metric:
            continue
        last = cell.model.rpartition("/")[2]
        model = last if last in _PAPER_MODELS else cell.model
        if cell.paper:
            quoted = _point(cell, cell.paper, cell.paper_std, "", paper=True)
            everywhere.append((Panel(cell.task_or_split, model, None), quoted))
        if not cell.ours:
            continue
        record = records[cell.workdir.partition(" + ")[0]]
        panel = Panel(cell.task_or_split, model, record.examples, record.evaluated_on)
        joined = setting(record, ("method", "learning_rate", "weight_decay"))
        point = _point(cell, cell.ours, cell.ours_std, joined, paper=False)
        if panel.examples is None:
            everywhere.append((panel, point))
        else:
            result.setdefault(panel, []).append(point)
    for place, point in everywhere:
        alike = [p for p in result if dataclasses.replace(p, examples=None) == place]
        if not alike and not point.paper:
            alike = [place]
        for panel in alike:
            result.setdefault(panel, []).append(point)
    return {panel: points for panel, points in result.items() if len(points) > 1}


def _point(cell: Cell, value: str, std: str, joined: str, *, paper: bool) -> Point:
    """The point of a cell.

    Args:
      cell: of the table.
      value, std: as shown there.
      joined: `Point.setting`.
      paper: whether the value is the paper's.
    """
    text = cell.trained
    return Point(
        method=cell.method,
        trained=int(printed(text)[0]) if text[-1] in "MB" else int(text),
        score=math.nan if value.startswith("diverged") else float(value),
        std=float(std or 0),
        paper=paper,
        setting=joined,
    )
