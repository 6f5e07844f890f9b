"""Heat maps of slow-downs in one colour scale, with the numbers and their intervals in the cells.

Differences are in PuOr as everywhere (`lora_jax.analysis.plots`): white is the base's latency, orange is
slower. A cell whose interval includes 0 is grey: there the difference may be noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

_CELL = (0.62, 0.46)  # inches
_FONT = 8.5  # points


class Panel(NamedTuple):
    """One heat map.

    Attributes:
      title: above it; may be empty.
      values: slow-downs in per cent; a column for each batch size.
      halves: half of their intervals.
    """

    title: str
    values: np.ndarray
    halves: np.ndarray


class Row(NamedTuple):
    """Panels beside one another.

    Attributes:
      label: what their vertical axis counts.
      panels: as many as the first row has, or fewer in the last.
    """

    label: str
    panels: Sequence[Panel]


def draw(rows: Sequence[Row], vertical: Sequence[int], batches: Sequence[int]) -> Figure:
    """Draws panels over batch size.

    Args:
      rows: the panels.
      vertical: numbers of the vertical axis of all panels.
      batches: batch sizes.
    """
    down, across = len(rows), len(rows[0].panels)
    width = across * (max(_CELL[0] * len(batches), 1.6) + 0.35) + 1.3
    height = down * (max(_CELL[1] * len(vertical), 1.0) + 0.45) + 0.5
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    low, top = _ends([panel for row in rows for panel in row.panels])
    for axes, row in zip(grid, rows, strict=True):
        axes[0].set_ylabel(row.label, fontsize=_FONT)
        for axis, panel in zip(axes, row.panels, strict=False):
            image = _draw(axis, panel, top)
            axis.set_xticks(range(len(batches)), list(map(str, batches)), fontsize=_FONT)
            axis.set_yticks(range(len(vertical)), list(map(str, vertical)), fontsize=_FONT)
    used = len(rows[-1].panels)
    for axis in grid[-1, used:]:
        axis.remove()
    for axis in (*grid[-1, :used], *grid[down - 2, used:]):  # the last panel of its column
        axis.set_xlabel("batch size", fontsize=_FONT)
        axis.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.02)
    bar.set_label("slow-down over the base, %\n(grey: the 95% interval includes 0)", fontsize=_FONT)
    bar.ax.tick_params(labelsize=_FONT)
    bar.ax.set_ylim(max(-top, min(low, -0.1 * top)), top)  # colours that no cell has are left out
    return figure


def _ends(panels: Sequence[Panel]) -> tuple[float, float]:
    """The lowest slow-down that is no noise, and the end of the colour scale."""
    clear = [v for panel in panels for v in panel.values[np.abs(panel.values) > panel.halves]]
    return float(min(clear, default=0)), _round_up(float(np.abs(clear).max(initial=0)))


def _draw(axis: Axes, panel: Panel, top: float) -> AxesImage:
    _, values, halves = panel
    axis.set_title(panel.title, fontsize=_FONT)
    clear = np.abs(values) > halves
    shown = np.ma.masked_array(values, ~clear)
    image = axis.imshow(shown, vmin=-top, vmax=top, cmap="PuOr_r", aspect="auto")
    axis.set_facecolor("0.85")

    def luma(value: float) -> float:
        return float(image.to_rgba(np.array([value]))[0, :3] @ (0.299, 0.587, 0.114))

    for (row, column), value in np.ndenumerate(values):
        light = clear[row, column] and luma(value) < 0.5
        text = f"{_short(value, '+')}\n±{_short(float(halves[row, column]))}"
        axis.text(
            column, row, text, ha="center", va="center",
            fontsize=7, linespacing=0.95, color="white" if light else "black",
        )  # fmt: skip
    for which, edges in (("x", values.shape[1]), ("y", values.shape[0])):
        getattr(axis, f"set_{which}ticks")(np.arange(1, edges) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0)
    return image


def _short(value: float, sign: str = "") -> str:
    text = f"{value:{sign}.0f}" if abs(value) >= 99.5 else f"{value:{sign}.1f}"
    return "0.0" if float(text) == 0 else text


def _round_up(value: float) -> float:
    """The end of the colour scale: 1, 2 or 5 times a power of ten, at least 1%."""
    scale = 10 ** math.floor(math.log10(max(value, 1.0)))
    return next(float(scale * step) for step in (1, 2, 3.5, 5, 10) if value <= scale * step)
