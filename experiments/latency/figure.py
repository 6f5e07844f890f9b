"""Figure 5: the slow-down over the base by batch size and length, one panel for each contender.

The paper draws batch size against the size of the bottleneck, with a panel for each length; here the sizes
are the contenders'. Differences are in PuOr as everywhere (`lora_jax.analysis.plots`): white is the base's
latency, orange is slower, and the scale is one for all panels. A cell whose interval
includes 0 is grey: there the difference may be noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from experiments.latency.contenders import BASE
from experiments.latency.results import Record
from experiments.latency.tables import label

_CELL = (0.62, 0.46)  # inches
_FONT = 8.5  # points
_ACROSS = 3  # panels in a row, at most


def slow_downs(record: Record) -> Figure:
    """Draws the slow-downs of a record in per cent, with half of their intervals."""
    names = [name for name in record["contenders"] if name != BASE]
    batches = sorted({point["batch"] for point in record["points"]})
    lengths = sorted({point["length"] for point in record["points"]})
    found = {(p["batch"], p["length"]): p["contenders"] for p in record["points"]}

    def per_cent(name: str, part: str) -> np.ndarray:
        rows = [[found[b, n][name]["slow_down"][part] for b in batches] for n in lengths]
        return 100 * np.array(rows)

    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    width = across * (max(_CELL[0] * len(batches), 1.6) + 0.35) + 1.3
    height = down * (max(_CELL[1] * len(lengths), 1.0) + 0.45) + 0.5
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    values = {name: per_cent(name, "value") for name in names}
    halves = {name: per_cent(name, "half") for name in names}
    clear = [v for name in names for v in values[name][np.abs(values[name]) > halves[name]]]
    low, top = float(min(clear, default=0)), _round_up(float(np.abs(clear).max(initial=0)))
    panels = list(grid.flat)
    for axis, name in zip(panels, names, strict=False):
        image = _draw(axis, values[name], halves[name], top)
        axis.set_title(_title(record, name), fontsize=_FONT)
        axis.set_xticks(range(len(batches)), list(map(str, batches)), fontsize=_FONT)
        axis.set_yticks(range(len(lengths)), list(map(str, lengths)), fontsize=_FONT)
    for axis in panels[len(names) :]:
        axis.remove()
    for index, axis in enumerate(panels[: len(names)]):
        if index + across >= len(names):  # the last panel of its column
            axis.set_xlabel("batch size", fontsize=_FONT)
            axis.tick_params(labelbottom=True)
        if index % across == 0:
            axis.set_ylabel("tokens of a row", fontsize=_FONT)
    bar = figure.colorbar(image, ax=panels[: len(names)], shrink=0.8, pad=0.02)
    bar.set_label("slow-down over the base, %\n(grey: the 95% interval includes 0)", fontsize=_FONT)
    bar.ax.tick_params(labelsize=_FONT)
    bar.ax.set_ylim(max(-top, min(low, -0.1 * top)), top)  # colours that no cell has are left out
    return figure


def _draw(axis: Axes, values: np.ndarray, halves: np.ndarray, top: float) -> AxesImage:
    clear = np.abs(values) > halves
    shown = np.ma.masked_array(values, ~clear)
    image = axis.imshow(shown, vmin=-top, vmax=top, cmap="PuOr_r", aspect="auto")
    axis.set_facecolor("0.85")
    for (row, column), value in np.ndenumerate(values):
        light = clear[row, column] and abs(value) > 0.6 * top  # the cell is dark there
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


def _title(record: Record, name: str) -> str:
    values = record["contenders"][name]["values"]
    if not values:
        return label(name)
    short = f"{values / 1e6:.1f}M" if values >= 1e6 else f"{values / 1e3:.0f}k"
    text: Any = f"{label(name)} ({short})"
    return str(text).replace("$", r"\$")  # which would begin mathematics


def _round_up(value: float) -> float:
    """The end of the colour scale: 1, 2 or 5 times a power of ten, at least 1%."""
    scale = 10 ** math.floor(math.log10(max(value, 1.0)))
    return next(float(scale * step) for step in (1, 2, 3.5, 5, 10) if value <= scale * step)
