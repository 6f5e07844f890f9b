"""Score against rank, one panel per rank sweep and one line per choice of weights.

The lines join medians over the seeds of each rank's best set-up, so that a rank is not judged by a learning
rate or alpha that suits another one. Points of one rank stand side by side, centred on it, since error bars
on one another cannot be told apart.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from experiments.paper.columns import COLUMNS
from experiments.paper.scores import TABLE_6, TABLE_18
from experiments.report.lora_set_up import weights_order, weights_text
from experiments.report.panel_grid import FONT, columns_of, panel_grid, style_axes
from experiments.report.rank_sweeps import Point, RankSweep
from lora_jax.analysis.plots import COLOURS, LINES, MARKERS

_PAPER: dict[str, Any] = {
    "color": "0.5",
    "linestyle": "--",
    "linewidth": 1.2,
    "label": "paper, Table 18",
}
_TITLE_WIDTH = 54  # characters
_CLOSE = 0.055  # of the axis: nearer tick labels would overlap


def paper_curve(sweep: RankSweep) -> dict[int, float]:
    """BLEU by rank of Table 18, if the sweep has its model, task and weights; else empty."""
    record = sweep.records[0]
    same = (record.task, record.model.rpartition("/")[2]) == ("e2e", "gpt2-medium")
    if not same or record.evaluated_on or all(point.weights != "qv" for point in sweep.points):
        return {}
    bleu = [column.metric for column in COLUMNS[18]].index("bleu")
    return {rank: float(scores[bleu]) for rank, scores in TABLE_18.items()}


def styles(sweeps: Sequence[RankSweep]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes by weights, the same in all panels; dashes change once colours run out."""
    weights = sorted({p.weights for sweep in sweeps for p in sweep.points}, key=weights_order)
    # The clearest colours for the weights of Table 6, which are the ones with several ranks.
    first = dict.fromkeys([*(w for _, w in TABLE_6 if w in weights), *weights])
    count = len(COLOURS)
    looks = {
        choice: {
            "color": COLOURS[i % count],
            "marker": MARKERS[i % count],
            "linestyle": LINES[i // count % len(LINES)],
        }
        for i, choice in enumerate(first)
    }
    return {choice: looks[choice] for choice in weights}


def figure(sweeps: Sequence[RankSweep]) -> Figure | None:
    """The figure; None without a sweep in which something converged."""
    drawn = [sweep for sweep in sweeps if any(point.scores for point in sweep.points)]
    if not drawn:
        return None
    looks = styles(drawn)
    handles = [Line2D([], [], label=_plain(weights_text(w)), **look) for w, look in looks.items()]
    if any(map(paper_curve, drawn)):
        handles.append(Line2D([], [], **_PAPER))
    long = max(len(str(handle.get_label())) for handle in handles) > 40
    across = 1 if long else 2 * columns_of(len(drawn))
    result, grid = panel_grid(len(drawn), math.ceil(len(handles) / across))
    for axes, sweep in zip(grid, drawn, strict=True):
        _draw(axes, sweep, looks)
    result.legend(
        handles=handles, loc="outside lower center", ncols=across, fontsize=FONT, frameon=False
    )
    return result


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula: a pattern may end in $."""
    return text.replace("$", r"\$")


def _draw(axes: Axes, sweep: RankSweep, looks: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_title(_plain(textwrap.fill(sweep.name, _TITLE_WIDTH)), fontsize=FONT)
    metric = sweep.column.metric
    unit = "BLEU" if metric == "bleu" else metric + " x 100" * sweep.column.percent
    axes.set_ylabel(unit, fontsize=FONT)
    style_axes(axes)
    paper = paper_curve(sweep)
    if paper:
        axes.plot(list(paper), list(paper.values()), **_PAPER, zorder=1.5)
    ranks = sorted({point.rank for point in sweep.points} | set(paper))
    _rank_axis(axes, ranks)
    curves: dict[str, list[Point]] = {}
    for point in sweep.points:
        if point.scores:
            curves.setdefault(point.weights, []).append(point)
    step = _step(ranks, len(curves))
    for weights, points in curves.items():
        places = []
        for point in points:
            beside = [w for w, ps in curves.items() if any(p.rank == point.rank for p in ps)]
            off = beside.index(weights) - (len(beside) - 1) / 2
            places.append(point.rank * 2 ** (off * step))
        _curve(axes, places, points, looks[weights], step)
    text = "rank"
    if diverged := [point for point in sweep.points if not point.scores]:
        names = "; ".join(f"{weights_text(p.weights)} r={p.rank}" for p in diverged)
        text += "\n" + textwrap.fill(f"all runs diverged: {names}", _TITLE_WIDTH)
    axes.set_xlabel(_plain(text), fontsize=FONT)


def _step(ranks: Sequence[int], curves: int) -> float:
    """Octaves between neighbouring points of one rank.

    A small share of the axis, and so little that all points of a rank stay nearer than the next rank.
    """
    octaves = [math.log2(rank) for rank in ranks]
    gaps = [b - a for a, b in itertools.pairwise(octaves)] or [1.0]
    return min(0.014 * max(octaves[-1] - octaves[0], 1), 0.6 * min(gaps) / curves)


def _curve(
    axes: Axes,
    places: Sequence[float],
    points: Sequence[Point],
    look: Mapping[str, Any],
    step: float,
) -> None:
    """Draws median and range of every point and, just to the right, single seeds.

    Args:
      axes: of the panel.
      places: on the rank axis, one per point.
      points: of one choice of weights.
      look: see `styles`.
      step: octaves between points of one rank.
    """
    several = [(x * 2 ** (0.4 * step), p) for x, p in zip(places, points, strict=True)]
    seeds = [(x, score) for x, p in several if len(p.scores) > 1 for score in p.scores]
    axes.scatter(
        [x for x, _ in seeds], [y for _, y in seeds], s=9, color=look["color"], alpha=0.45,
        linewidths=0, zorder=2.5,
    )  # fmt: skip
    axes.errorbar(
        places, [p.median for p in points],
        [[p.median - min(p.scores) for p in points], [max(p.scores) - p.median for p in points]],
        **look, markersize=5.5, markeredgecolor="white", markeredgewidth=0.4, linewidth=1.2,
        elinewidth=0.9, capsize=2, zorder=3,
    )  # fmt: skip


def _rank_axis(axes: Axes, ranks: Sequence[int]) -> None:
    """Ranks as ticks of a log2 axis; where two labels would overlap, that of a power of two stays."""
    axes.set_xscale("log", base=2)
    low, high = math.log2(ranks[0]), math.log2(ranks[-1])
    margin = max(0.06 * (high - low), 0.2)
    axes.set_xlim(2 ** (low - margin), 2 ** (high + margin))
    labelled: list[int] = []
    for rank in sorted(ranks, key=lambda r: (r & (r - 1) != 0, r)):
        near = (abs(math.log2(rank / other)) for other in labelled)
        if all(gap > _CLOSE * (high - low + 2 * margin) for gap in near):
            labelled.append(rank)
    axes.set_xticks(ranks, [str(rank) if rank in labelled else "" for rank in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
