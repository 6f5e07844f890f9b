"""Score against the number of trained values, in the form of the paper's Figure 2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from experiments.report.panel_grid import FONT, columns_of, panel_grid, style_axes
from experiments.report.panels import Panel, Point, panels
from experiments.report.tables import Table
from lora_jax.analysis.plots import COLOURS

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
# Methods without trained values besides the head are drawn as levels.
_LINES = {"head_only": (0, (5, 2)), "none": (0, (1, 2))}
_UNITS = {
    "accuracy": "accuracy, %",
    "matthews": "Matthews x 100",
    "pearson": "Pearson x 100",
    "bleu": "BLEU",
    "logical_form": "right logical form, %",
    "rouge_1": "ROUGE-1",
    "loss": "validation loss",
}


def figure(table: Table) -> Figure | None:
    """The figure of Table 2, 3, 4, 13, 14 or 15; None if nothing can be compared."""
    drawn = panels(table)
    return draw(drawn) if drawn else None


def draw(drawn: Mapping[Panel, Sequence[Point]]) -> Figure:
    """The figure of some panels, at least one."""
    handles = _legend([point for points in drawn.values() for point in points])
    across = 5 if columns_of(len(drawn)) == 2 else 3
    result, grid = panel_grid(len(drawn), math.ceil(len(handles) / across))
    for axes, (panel, points) in zip(grid, drawn.items(), strict=True):
        _draw(axes, panel, points)
    result.legend(
        handles=handles, loc="outside lower center", ncols=across, fontsize=FONT, frameon=False,
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
    axes.set_ylabel(_UNITS[panel.metric], fontsize=FONT)
    style_axes(axes)
    axes.margins(y=0.08)
    for (method, _), series in _series(points).items():
        for point in series:
            _draw_point(axes, point)
        sizes = sorted((p.trained, p.score) for p in series if p.trained and not p.paper)
        if len({size for size, _ in sizes}) == len(sizes) > 1:  # else no curve over sizes
            color, _ = STYLES.get(method, _OTHER)
            axes.plot([x for x, _ in sizes], [y for _, y in sizes], color=color, linewidth=0.9)
    if diverged := sorted({p.method for p in points if math.isnan(p.score)}):
        text = f"diverged: {', '.join(diverged)}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.02, 0.03, text, transform=axes.transAxes, fontsize=FONT, bbox=box, zorder=5)


def _draw_point(axes: Axes, point: Point) -> None:
    color, marker = STYLES.get(point.method, _OTHER)
    if not point.trained:
        style = _LINES.get(point.method, "--")
        axes.axhline(point.score, color="0.35", linestyle=style, linewidth=1)
        return
    order = 2 if point.paper else 4 - (point.method == "lora")
    if point.std:
        axes.errorbar(
            point.trained, point.score, point.std, fmt="none", ecolor=color, capsize=2.5,
            elinewidth=0.9, zorder=order,
        )  # fmt: skip
    axes.plot(
        point.trained, point.score, marker=marker, markersize=_size(marker), zorder=order,
        markerfacecolor="none" if point.paper else color, linestyle="none",
        markeredgecolor=color if point.paper else "white",
        markeredgewidth=1.2 if point.paper else 0.4,
    )  # fmt: skip


def _size(marker: str) -> float:
    """In points; LoRA's is below the others and larger, so that neither hides the other."""
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
