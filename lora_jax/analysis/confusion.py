"""A confusion matrix as a picture, from two classes to hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from lora_jax.data.labels import short_name

_WITH_COUNTS = 25  # classes whose cells have room for a count
_LEVEL = 12  # classes whose names stand aslant below the picture, not upright
_NAMED = 110  # classes whose names fit; of more every second or third is named


def confusion_figure(
    matrix: Int[np.ndarray, "n n"], classes: Sequence[str], title: str = ""
) -> Figure:
    """Draws a confusion matrix; colours are shares of a row, so that rare classes can be read.

    Args:
      matrix: examples of a class (rows) that were given each class (columns).
      classes: names, in the order of rows and columns.
      title: above the picture.
    """
    count = len(classes)
    cell = 0.62 if count <= 8 else 0.46  # inches
    side = min(max(2.2, cell * count), 11.5)
    font = min(9.0, 0.7 * 72 * side / min(count, _NAMED))
    # A dollar sign would begin mathematics.
    names = [short_name(name).replace("$", r"\$") for name in classes]
    margin = 0.6 + max(map(len, names)) * font * 0.55 / 72
    below = margin * (0.75 if count <= _LEVEL else 1)
    figure = Figure(figsize=(side + margin + 0.9, side + below + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    support = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(support, 1)
    # The root of a share, so that a few mistakes can be seen beside hundreds of right answers.
    image = axis.imshow(shares, norm=PowerNorm(0.6, vmin=0, vmax=1), cmap="Blues")
    _name_axes(axis, names, font)
    if count <= _WITH_COUNTS:
        _write_counts(axis, matrix, shares, min(9.0, 0.3 * 72 * side / count))
    axis.set_title(title, fontsize=10)
    bar = figure.colorbar(image, ax=axis, shrink=0.75, pad=0.02)
    bar.set_label("share of the label's rows", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _name_axes(axis: Axes, names: Sequence[str], font: float) -> None:
    count = len(names)
    axis.set_xlabel("prediction", fontsize=9)
    axis.set_ylabel("label", fontsize=9)
    step = -(-count // _NAMED)
    places = range(0, count, step)
    shown = [names[place] for place in places]
    level = max(map(len, names)) <= 6 and count <= _LEVEL
    turned: dict[str, Any] = (
        {} if level else {"rotation": 90 if count > _LEVEL else 40, "rotation_mode": "anchor"}
    )
    sides = "center" if level else "right"
    axis.set_xticks(places, shown, fontsize=font, ha=sides, **turned)
    if turned.get("rotation") == 90:
        for label in axis.get_xticklabels():
            label.set_verticalalignment("center")
    axis.set_yticks(places, shown, fontsize=font)
    axis.tick_params(length=0 if count <= _WITH_COUNTS else 1.5, pad=2)
    if step == 1:
        edges = np.arange(count + 1) - 0.5
        axis.set_xticks(edges, minor=True)
        axis.set_yticks(edges, minor=True)
        few = count <= _WITH_COUNTS
        axis.grid(which="minor", color="white" if few else "0.88", linewidth=1.0 if few else 0.3)
        axis.tick_params(which="minor", length=0)
    for spine in axis.spines.values():
        spine.set_edgecolor("0.7")


def _write_counts(axis: Axes, matrix: np.ndarray, shares: np.ndarray, font: float) -> None:
    for (row, column), number in np.ndenumerate(matrix):
        if number:
            colour = "white" if shares[row, column] > 0.45 else "0.15"
            weight = "bold" if row == column else "normal"
            axis.text(
                column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=font,
                fontweight=weight,
            )  # fmt: skip
