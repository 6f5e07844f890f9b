"""Score against the number of training examples: the paper's Table 16 in one panel, ours in the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.paper.scores import SIZES_16, TABLE_16
from experiments.report.low_data import METHODS, PAPER_MODEL, Setup, by_setup, column_of, mean_of
from experiments.report.panel_grid import FONT, columns_of, panel_grid, style_axes
from experiments.report.record import Record
from experiments.report.settings import pooled
from experiments.runs.intervals import Interval
from experiments.runs.looks import Style, styles
from lora_jax.data.glue_tasks import TASKS

_CHANCE = {"color": "0.35", "linestyle": (0, (1, 2)), "linewidth": 1.0}
Curve = Mapping[int, Interval]  # scores by number of examples


def figure(records: Sequence[Record]) -> Figure | None:
    """The figure; None without a run on balanced data that has a score."""
    ours = {setup: curves(group) for setup, group in by_setup(records).items()}
    ours = {setup: own for setup, own in ours.items() if own}
    if not ours:
        return None
    others = sorted({method for own in ours.values() for method in own} - set(METHODS))
    looks = styles([*METHODS, *others], "lora")
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, markersize=look.size(5), label=name)
        for name, look in looks.items()
    ] + [Line2D([], [], **_CHANCE, label="chance")]  # type: ignore[arg-type]
    across = 3 * columns_of(1 + len(ours))
    result, grid = panel_grid(1 + len(ours), math.ceil(len(handles) / across))
    _draw(grid[0], f"{PAPER_MODEL}, mnli (paper)", _of_paper(), looks)
    _chance(grid[0], "mnli")
    for axes, (setup, own) in zip(grid[1:], ours.items(), strict=True):
        _draw(axes, setup.title, own, looks)
        _chance(axes, setup.task)
        axes.set_ylabel(_unit(setup), fontsize=FONT)
    grid[0].set_ylabel("accuracy, %", fontsize=FONT)
    result.legend(
        handles=handles, loc="outside lower center", ncols=across, fontsize=FONT, frameon=False
    )
    return result


def curves(group: Sequence[Record]) -> dict[str, Curve]:
    """The mean score of every method by number of examples; of several set-ups the best one is drawn."""
    found: dict[str, dict[int, Interval]] = {}
    for record in pooled(group):
        score = mean_of(record, column_of(record.task))
        if record.examples is None or not math.isfinite(score.value):
            continue
        curve = found.setdefault(record.method, {})
        if record.examples not in curve or score.value > curve[record.examples].value:
            curve[record.examples] = score
    return {name: dict(sorted(curve.items())) for name, curve in found.items()}


def _of_paper() -> dict[str, Curve]:
    return {
        name: {
            size: Interval(float(score), math.nan)
            for size, score in zip(SIZES_16, scores, strict=True)
        }
        for name, scores in TABLE_16.items()
    }


def _draw(axes: Axes, title: str, own: Mapping[str, Curve], looks: Mapping[str, Style]) -> None:
    axes.set_title(title, fontsize=FONT)
    axes.set_xscale("log")
    axes.set_xlabel("training examples", fontsize=FONT)
    style_axes(axes)
    for name, look in looks.items():
        if name not in own:
            continue
        curve = own[name]
        halves = [0.0 if math.isnan(point.half) else point.half for point in curve.values()]
        axes.errorbar(
            list(curve), [point.value for point in curve.values()],
            halves if any(halves) else None, color=look.colour, marker=look.marker,
            markersize=look.size(5), linewidth=1.1, elinewidth=0.9, capsize=2.5,
        )  # fmt: skip


def _chance(axes: Axes, task: str) -> None:
    """The line of chance of an accuracy, with as many classes as the task has."""
    classes = len(TASKS[task.removesuffix("_text")].labels)
    chance = 100 / classes if column_of(task).metric == "accuracy" else 0
    axes.axhline(chance, **_CHANCE)  # type: ignore[arg-type]


def _unit(setup: Setup) -> str:
    column = column_of(setup.task)
    return f"{column.metric}, %" if column.metric == "accuracy" else f"{column.metric} x 100"
