"""The plots of a comparison: score against trained values, and against the learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from experiments.compare.statistics import REFERENCE, AtRate, Row
from experiments.report.panel_grid import FONT, panel_grid, style_axes
from experiments.runs import looks
from experiments.runs.looks import Style

_SAME = 1.25  # numbers of trained values within this factor are drawn side by side
_DECADE = 10.0
_APART = 1.1  # as times the one before
_PANEL_METHODS = 4  # lines in one panel, besides the reference


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each method: the reference is a black circle, whatever else is drawn."""
    return looks.styles(sorted(names, key=_natural), first=REFERENCE)


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts names with numbers by these: rank_4 before rank_16."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def by_size(rows: Sequence[Row], label: str, factor: float) -> Figure | None:
    """Score at the best rate against the number of trained values; None if no method has a score.

    Args:
      rows: the methods.
      label: of the score.
      factor: from scores to the label's unit.
    """
    shown = [row for row in rows if row.score is not None]
    if not shown:
        return None
    style_of = styles([row.name for row in rows])
    figure = Figure(figsize=(7.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    style_axes(axes)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    places: dict[str, float] = {}
    for group in _alike(shown):
        own = _side_by_side(group)
        places |= own
        if len(group) > 1:
            axes.axvspan(
                min(own.values()) / _APART, max(own.values()) * _APART, color="0.94", zorder=0
            )
    for row in shown:
        assert row.score is not None
        look, value = style_of[row.name], factor * row.score.value
        half = 0.0 if math.isnan(row.score.half) else factor * row.score.half
        axes.errorbar(
            places[row.name], value, half or None, color=look.colour, marker=look.marker, capsize=2.5,
            markersize=look.size(6.5), markeredgecolor="white", markeredgewidth=0.4, elinewidth=0.9,
            linestyle="none",
        )  # fmt: skip
    axes.set_xlim(min(places.values()) / 2, max(places.values()) * 2)
    if max(places.values()) < _DECADE * min(places.values()):
        axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 1)))
        axes.tick_params(axis="x", which="minor", labelsize=FONT)
    grouped = any(len(group) > 1 for group in _alike(shown))
    axes.set_xlabel(
        "number of trained values, without the head"
        + (" (in grey: about equally many, drawn side by side)" if grouped else ""),
        fontsize=FONT,
    )
    axes.set_ylabel(label, fontsize=FONT)
    handles = [_handle(row.name, style_of[row.name], line=False) for row in shown]
    figure.legend(handles=handles, loc="outside right upper", fontsize=FONT, frameon=False)
    return figure


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """The methods in groups with about the same number of values, from few to many."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.trained, row.name)):
        if groups and row.trained <= _SAME * groups[-1][0].trained:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _side_by_side(group: Sequence[Row]) -> dict[str, float]:
    """Where the methods of a group are drawn: around the mean of their numbers of values."""
    middle = math.exp(np.mean([math.log(max(row.trained, 1)) for row in group]))
    half = (len(group) - 1) / 2
    return {row.name: middle * _APART ** (n - half) for n, row in enumerate(group)}


def by_rate(rows: Sequence[Row], label: str, factor: float) -> Figure | None:
    """Score against the learning rate, a few methods in a panel, the reference in all; None without scores.

    Args:
      rows: the methods.
      label: of the score.
      factor: from scores to the label's unit.
    """
    if all(row.score is None for row in rows):
        return None
    style_of = styles([row.name for row in rows])
    reference = [row for row in rows if row.name == REFERENCE]
    # In the order of the styles, so that the lines of a panel have different colours.
    others = sorted(
        (row for row in rows if row.name != REFERENCE), key=lambda row: _natural(row.name)
    )
    others = others or reference
    parts = [others[i : i + _PANEL_METHODS] for i in range(0, len(others), _PANEL_METHODS)]
    handles = [_handle(row.name, style_of[row.name], line=True) for row in [*reference, *others]]
    handles = list({handle.get_label(): handle for handle in handles}.values())
    if any(row.diverged for row in rows):
        text = "below: runs diverged"
        handles.append(Line2D([], [], color="0.35", marker="x", linestyle="none", label=text))
    columns = 5 if len(parts) > 1 else 3
    figure, grid = panel_grid(len(parts), math.ceil(len(handles) / columns))
    low, high = _limits(rows, factor)
    rates = [at.rate for row in rows for at in row.rates]
    for axes, part in zip(grid, parts, strict=True):
        style_axes(axes)
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 1.6, max(rates) * 1.6)
        axes.set_ylim(low, high)
        drawn = {row.name: row for row in [*reference, *part]}
        for row in drawn.values():
            _draw_line(axes, row, style_of[row.name], factor, (low, high))
        _draw_diverged(axes, drawn, style_of)
        axes.set_xlabel("learning rate", fontsize=FONT)
        axes.set_ylabel(label, fontsize=FONT)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=FONT, frameon=False,
        columnspacing=1.0, handletextpad=0.4,
    )  # fmt: skip
    return figure


def _limits(rows: Sequence[Row], factor: float) -> tuple[float, float]:
    """Of the scores at best rates and their neighbours, and some room; lines and bands that leave are cut.

    A rate at which training fails without diverging has a score so bad that nothing else could be told apart
    beside it. Below is the room of the crosses.
    """
    means = [factor * value for row in rows for value in _around_best(row)]
    span = (max(means) - min(means)) or abs(max(means)) * 0.1 or 1.0
    return min(means) - 0.25 * span, max(means) + 0.1 * span


def _around_best(row: Row) -> list[float]:
    """The means at a method's best rate and at the rates next to it."""
    if row.best is None:
        return []
    at = row.rates.index(row.best)
    near = row.rates[max(at - 1, 0) : at + 2]
    return [own.interval.value for own in near if own.interval is not None]


def _draw_line(
    axes: Axes, row: Row, look: Style, factor: float, limits: tuple[float, float]
) -> None:
    """The line of a method; it has a gap where runs failed. The chosen rate's marker is larger.

    The band has no part between a mean inside the limits and one outside: where training fails, seeds differ
    so much that it would fill the panel.
    """
    at_all: Sequence[AtRate] = row.rates
    x = np.array([at.rate for at in at_all])
    found = [at.interval for at in at_all]
    mean = np.array([math.nan if i is None else factor * i.value for i in found])
    half = np.array([math.nan if i is None else factor * i.half for i in found])
    half[(mean < limits[0]) | (mean > limits[1])] = math.nan
    reference = row.name == REFERENCE
    axes.plot(
        x, mean, color=look.colour, marker=look.marker, markersize=look.size(4.5), linewidth=1.1,
        linestyle=":" if reference else "-", markeredgecolor="white", markeredgewidth=0.3,
        zorder=2 if reference else 3,
    )  # fmt: skip
    axes.fill_between(x, mean - half, mean + half, color=look.colour, alpha=0.13, linewidth=0)
    if row.best is not None and row.score is not None:
        axes.plot(
            row.best.rate, factor * row.score.value, color=look.colour, marker=look.marker,
            markersize=look.size(8), markeredgecolor="white", markeredgewidth=0.4, linestyle="none", zorder=4,
        )  # fmt: skip


def _draw_diverged(axes: Axes, rows: Mapping[str, Row], style_of: Mapping[str, Style]) -> None:
    """A cross at the bottom for each rate at which runs of a method diverged, one line for each method."""
    across = axes.get_xaxis_transform()
    marked = [(row, at) for row in rows.values() for at in row.rates if at.diverged]
    lines = list(dict.fromkeys(row.name for row, _ in marked))
    for row, at in marked:
        height = 0.03 + 0.035 * lines.index(row.name)
        axes.plot(
            at.rate, height, marker="x", markersize=5, markeredgewidth=1.4, linestyle="none",
            color=style_of[row.name].colour, transform=across, zorder=5,
        )  # fmt: skip


def _handle(name: str, look: Style, *, line: bool) -> Line2D:
    dashes: Literal[":", "-", "none"] = (":" if name == REFERENCE else "-") if line else "none"
    return Line2D(
        [], [], color=look.colour, marker=look.marker, markersize=look.size(6.5), linestyle=dashes,
        linewidth=1.1, markeredgecolor="white", markeredgewidth=0.4, label=name,
    )  # fmt: skip
