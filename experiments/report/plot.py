"""Score against the number of trained values, in the form of the paper's Figure 2."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from experiments.paper.counts import printed
from experiments.paper.scores import SCORES
from experiments.report.records import setting
from experiments.report.sweeps import HEADLINES
from experiments.report.tables import Cell, Table
from lora_jax.analysis.plots import COLOURS

PANEL = (100, 78)  # mm
_MM = 1 / 25.4
FONT = 8.5
# Colour-blind readers can tell these apart, and each method has its own marker too.
_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, _SKY, _BLACK = COLOURS
STYLES = {
    "full": (_BLACK, "s"),
    "top_layers": (_BLACK, "^"),
    "bitfit": (_PURPLE, "P"),
    "adapter_h": (_GREEN, "v"),
    "adapter_p": (_GREEN, "D"),
    "adapter_l": (_ORANGE, "h"),
    "adapter_d": (_ORANGE, "<"),
    "prefix_embed": (_SKY, "p"),
    "prefix_layer": (_SKY, "X"),
    "lora": (_RED, "o"),
    "lora+prefix_embed": (_BLUE, ">"),
    "lora+prefix_layer": (_BLUE, "*"),
}
_OTHER = (_PURPLE, "d")
_LINES = {"head_only": (0, (5, 2)), "none": (0, (1, 2))}
_PAPER_MODELS = {row.row.model for rows in SCORES.values() for row in rows}
_UNITS = {
    "accuracy": "accuracy, %",
    "matthews": "Matthews x 100",
    "pearson": "Pearson x 100",
    "bleu": "BLEU",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one panel compares: scores of one task by one model after training on as many examples.

    Attributes:
      task: name.
      model: label.
      examples: of training; None for the model as it was.
      evaluated_on: see `Record.evaluated_on`.
    """

    task: str
    model: str
    examples: int | None
    evaluated_on: str = ""

    @property
    def title(self) -> str:
        """Two lines."""
        name = HEADLINES[self.task].title if HEADLINES[self.task].metric != "bleu" else self.task
        scored = f", {self.evaluated_on}" * bool(self.evaluated_on)
        trained = f"{self.examples:,} training examples" if self.examples else "not trained"
        return f"{name}, {self.model}\n{trained}{scored}"


@dataclasses.dataclass(frozen=True)
class Point:
    """A score of a method.

    Attributes:
      method: name.
      trained: number of trained values; 0 where none besides the head train.
      score: in the unit of the table; NaN if a seed diverged.
      std: over seeds; 0 if not known.
      paper: whether it is the paper's.
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

    The model as it was and the paper's points are in all panels of a task and model. A panel with one
    point compares nothing and is left out.
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
    for where, point in everywhere:
        alike = [p for p in result if dataclasses.replace(p, examples=None) == where]
        if not alike and not point.paper:
            alike = [where]
        for panel in alike:
            result.setdefault(panel, []).append(point)
    return {panel: points for panel, points in result.items() if len(points) > 1}


def _point(cell: Cell, value: str, std: str, joined: str, *, paper: bool) -> Point:
    text = cell.trained
    trained = int(printed(text)[0]) if text[-1] in "MB" else int(text)
    score = math.nan if value.startswith("diverged") else float(value)
    return Point(cell.method, trained, score, float(std or 0), paper, joined)


def figure(table: Table) -> Figure | None:
    """The figure of Table 2, 3, 13 or 14; None without panels."""
    own = panels(table)
    if not own:
        return None
    columns = min(2, len(own))
    rows = math.ceil(len(own) / columns)
    labels = _legend([p for points in own.values() for p in points])
    across = 5 if columns == 2 else 3
    legend = 5 * math.ceil(len(labels) / across) + 4  # mm
    width, height = PANEL[0] * columns, PANEL[1] * rows + legend
    result = Figure(figsize=(width * _MM, height * _MM), dpi=150, layout="constrained")
    FigureCanvasAgg(result)
    grid = list(result.subplots(rows, columns, squeeze=False).flat)
    for axes, (panel, points) in zip(grid, own.items(), strict=False):
        _draw(axes, panel, points)
    for axes in grid[len(own) :]:
        axes.remove()
    result.legend(
        handles=labels, loc="outside lower center", ncols=across, fontsize=FONT, frameon=False,
        columnspacing=1.0, handletextpad=0.3, handlelength=1.8,
    )  # fmt: skip
    return result


def _draw(axes: Axes, panel: Panel, points: Sequence[Point]) -> None:
    axes.set_title(panel.title, fontsize=FONT)
    axes.set_xscale("log")
    trained = [p.trained for p in points if p.trained]
    if trained:
        axes.set_xlim(min(trained) / 4, max(trained) * 4)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trained values, the head apart", fontsize=FONT)
    axes.set_ylabel(_UNITS[HEADLINES[panel.task].metric], fontsize=FONT)
    axes.tick_params(labelsize=FONT)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.08)
    for (method, _), own in _series(points).items():
        color, marker = STYLES.get(method, _OTHER)
        for point in own:
            if not point.trained:
                style = _LINES.get(method, "--")
                axes.axhline(point.score, color="0.35", linestyle=style, linewidth=1)
                continue
            above = 2 if point.paper else 4 - (method == "lora")
            if point.std:
                axes.errorbar(
                    point.trained, point.score, point.std, fmt="none", ecolor=color, capsize=2.5,
                    elinewidth=0.9, zorder=above,
                )  # fmt: skip
            axes.plot(
                point.trained, point.score, marker=marker, markersize=_size(marker), zorder=above,
                markerfacecolor="none" if point.paper else color, linestyle="none",
                markeredgecolor=color if point.paper else "white",
                markeredgewidth=1.2 if point.paper else 0.4,
            )  # fmt: skip
        ours = sorted((p.trained, p.score) for p in own if p.trained and not p.paper)
        if len({size for size, _ in ours}) == len(ours) > 1:  # else they are not a curve over size
            axes.plot([x for x, _ in ours], [y for _, y in ours], color=color, linewidth=0.9)
    if diverged := sorted({p.method for p in points if math.isnan(p.score)}):
        text = f"diverged: {', '.join(diverged)}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.02, 0.03, text, transform=axes.transAxes, fontsize=FONT, bbox=box, zorder=5)


def _size(marker: str) -> float:
    """In points; LoRA's is beneath the others and larger, so that neither hides the other."""
    return {"*": 9, "o": 8.5}.get(marker, 6)


def _series(points: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """By method and set-up: a line joins sizes of one method, never runs of different set-ups."""
    result: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        result.setdefault((point.method, point.setting), []).append(point)
    return result


def _legend(points: Sequence[Point]) -> list[Line2D]:
    present = {p.method for p in points}
    handles = []
    for method in [*STYLES, *sorted(present - {*STYLES, *_LINES})]:
        if method in present:
            color, marker = STYLES.get(method, _OTHER)
            look = Line2D([], [], color=color, marker=marker, linestyle="none", label=method)
            look.set_markersize(_size(marker))
            handles.append(look)
    for method, style in _LINES.items():
        if method in present:
            handles.append(Line2D([], [], color="0.35", linestyle=style, linewidth=1, label=method))
    if any(p.paper for p in points):
        handles.append(
            Line2D([], [], color="0.35", marker="o", markerfacecolor="none", linestyle="none",
                   label="hollow: the paper's")
        )  # fmt: skip
    return handles
