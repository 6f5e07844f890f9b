"""The page that both plots of the report are drawn on: panels of one size, a legend below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL = (100, 78)  # mm
FONT = 8.5  # points
_MM = 1 / 25.4  # inches
_LEGEND_LINE, _LEGEND_MARGIN = 5, 4  # mm


def columns_of(panels: int) -> int:
    """The number of columns for so many panels."""
    return min(2, panels)


def panel_grid(panels: int, legend_lines: int) -> tuple[Figure, list[Axes]]:
    """An empty figure.

    Args:
      panels: their number.
      legend_lines: lines of text that the legend below will have.

    Returns:
      The figure, and the axes of its panels.
    """
    columns = columns_of(panels)
    rows = math.ceil(panels / columns)
    legend = _LEGEND_LINE * legend_lines + _LEGEND_MARGIN
    width, height = PANEL[0] * columns, PANEL[1] * rows + legend
    figure = Figure(figsize=(width * _MM, height * _MM), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid: Sequence[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.remove()
    return figure, list(grid[:panels])


def style_axes(axes: Axes) -> None:
    """Small labels, and a light grid behind the data."""
    axes.tick_params(labelsize=FONT)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
