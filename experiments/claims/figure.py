"""The forest plot of a comparison: best learning rates and best scores against full fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.claims.claims import TEN_TIMES
from experiments.claims.measured import Measured, log_ratio, worse_by
from experiments.claims.regret import full, parts, ranks
from experiments.claims.rules import MARGIN
from experiments.compare.page import Unit
from experiments.compare.record import Comparison
from experiments.report.panel_grid import FONT, style_axes
from lora_jax.analysis.plots import COLOURS

_LINE = 0.28  # inches for each method
_REST = 1.2  # inches for the axis below
_RATIOS = (0.5, 200.0)  # limits of the ratios that are drawn, unless a mean lies beyond
_COLOUR, _SHADE = COLOURS[0], "0.92"


def drawn(comparison: Comparison) -> Figure:
    """The figure: ratios of rates and differences of scores, by rank and by adapted layers."""
    smaller, base = comparison.smaller_is_better, full(comparison)
    by_rank = {f"rank {rank}": row for rank, row in ranks(comparison).items()}
    lines = {**by_rank, **parts(comparison)}
    ratios = {name: log_ratio(row, base, smaller_is_better=smaller) for name, row in lines.items()}
    losses = {name: worse_by(row, base, smaller_is_better=smaller) for name, row in lines.items()}
    figure = Figure(figsize=(8.6, _REST + _LINE * len(lines)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_ratios(left, ratios)
    _draw_losses(right, losses, Unit(comparison.headline, smaller))
    return figure


def _draw_ratios(axes: Axes, ratios: Mapping[str, Measured]) -> None:
    axes.axvspan(*TEN_TIMES, color=_SHADE, zorder=0)
    axes.axvline(10, color="0.35", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    _draw(axes, ratios, lambda logarithm: 10**logarithm)
    means = [10**own.interval.value for own in ratios.values() if own.interval is not None]
    low, high = _RATIOS
    axes.set_xlim(min([low, *(m / 2 for m in means)]), max([high, *(2 * m for m in means)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    least, most = TEN_TIMES
    axes.set_xlabel(
        f"best learning rate over that of full fine-tuning\n(grey: {least:g} to {most:g} times, about ten)",
        fontsize=FONT,
    )


def _draw_losses(axes: Axes, losses: Mapping[str, Measured], unit: Unit) -> None:
    axes.axvline(0, color="0.35", linewidth=1)
    margin = unit.factor * MARGIN
    axes.axvline(margin, color="0.35", linestyle=":", linewidth=1)
    _draw(axes, losses, lambda difference: unit.factor * difference)
    metric = unit.label.partition(",")[0]
    axes.set_xlabel(
        f"worse than full fine-tuning by ({metric})\n(dotted: {margin:g}, below which nothing is lost)",
        fontsize=FONT,
    )


def _draw(axes: Axes, measured: Mapping[str, Measured], shown: Callable[[float], float]) -> None:
    """A line for each method, the first one on top.

    Args:
      axes: to draw on.
      measured: by the name of the line.
      shown: from a value to its place on the axis.
    """
    style_axes(axes)
    for place, own in enumerate(measured.values()):
        if (interval := own.interval) is None:
            axes.annotate(
                "no value", (0.02, place), xycoords=("axes fraction", "data"),
                va="center", color="0.35", fontsize=FONT, backgroundcolor="white",
            )  # fmt: skip
            continue
        if not math.isnan(interval.half):
            ends = [shown(interval.value + side * interval.half) for side in (-1, 1)]
            axes.plot(ends, [place, place], color=_COLOUR, linewidth=1.2)
        axes.plot(
            shown(interval.value), place, marker="o", markersize=6, linestyle="none", color=_COLOUR,
            markerfacecolor="white" if own.doubt else _COLOUR,
        )  # fmt: skip
    axes.set_yticks(range(len(measured)), list(measured))
    axes.set_ylim(len(measured) - 0.4, -0.6)
