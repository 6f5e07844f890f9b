"""Figures of the analysis: similarity maps, spectra, amplification.

Every function returns a matplotlib `Figure` and leaves no state behind; `save` writes it, and a notebook
shows it with `display(figure)` after `%matplotlib inline`. Colours are
those of Okabe and Ito with markers beside them, maps are viridis (dark to light in grey print too), and
differences PuOr, so that all can be read by colour-blind people and on paper.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lora_jax.analysis.amplification import Amplification
from lora_jax.analysis.similarity import random_mean
from lora_jax.analysis.spectra import energy
from lora_jax.files import write_bytes

Maps = Mapping[str, Mapping[str, Any]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
_PANEL = 2.3  # inches


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all; makes the folder if needed."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())
    return path


def similarity_maps(
    maps: Maps,
    d: int,
    *,
    rows: str,
    columns: str,
    chance: Literal["drawn", "subtracted"] = "drawn",
    zoom: int = 0,
    top: float | None = None,
) -> Figure:
    """Heat maps of phi(i, j), as in Figures 3, 4, 6, 7 and 8.

    Args:
      maps: by row of the figure (layers), by column (weights): phi, an array (m, n) each.
      d: dimension of the space, for the chance level max(i, j) / d.
      rows: what i counts, such as "i: directions of A, r = 8".
      columns: what j counts.
      chance: `drawn`: a last column shows the chance level in the same colours. `subtracted`: the
        colours show phi minus chance.
      zoom: further columns show the triangle j <= i <= zoom; 0 for none.
      top: the value at the end of the colours; by default one of 0.1, 0.2, 0.5 and 1.

    Raises:
      ValueError: no map.
    """
    if not maps or not all(maps.values()):
        raise ValueError("there is no map to draw")
    titles = list(next(iter(maps.values())))
    shown = {label: [np.asarray(own[title]) for title in titles] for label, own in maps.items()}
    levels = {
        values.shape: random_mean(d, *values.shape) for own in shown.values() for values in own
    }
    if chance == "subtracted":
        shown = {label: [v - levels[v.shape] for v in own] for label, own in shown.items()}
    top = top or _round_up(max(np.abs(v).max() for own in shown.values() for v in own))
    colours = (0.0, top, "viridis") if chance == "drawn" else (-top, top, "PuOr_r")
    count = len(titles) * (2 if zoom else 1) + (chance == "drawn")
    figure = _figure(count * _PANEL + 0.9, len(maps) * _PANEL + 0.5)
    grid = figure.subplots(len(maps), count, squeeze=False)
    for axes, (label, values) in zip(grid, shown.items(), strict=True):
        panels = list(zip(titles, values, strict=True))
        if zoom:
            panels += [
                (f"{title} j ≤ i ≤ {zoom}".strip(), _triangle(v, zoom)) for title, v in panels
            ]
        if chance == "drawn":
            panels.append((f"chance, max(i, j) / {d}", levels[max(values, key=np.size).shape]))
        for axis, (title, panel) in zip(axes, panels, strict=True):
            image = _map(axis, panel, *colours)
            axis.set_title(title)
        axes[0].set_title(f"{label} {titles[0]}".strip())
        axes[0].set_ylabel(rows)
    for axis in grid[-1]:
        axis.set_xlabel(columns)
    text = r"$\phi$" if chance == "drawn" else r"$\phi$ minus chance"
    figure.colorbar(image, ax=grid, label=text, shrink=0.8 / len(maps) ** 0.5)
    return figure


def _round_up(value: float) -> float:
    return next((top for top in (0.1, 0.2, 0.5) if value <= top), 1.0)


def _triangle(values: np.ndarray, zoom: int) -> np.ndarray:
    near = values[:zoom, :zoom]
    return np.ma.masked_array(near, np.triu(np.ones(near.shape, bool), 1))


def _map(axis: Axes, values: np.ndarray, low: float, top: float, colours: str) -> Any:
    m, n = values.shape
    edges = (0.5, n + 0.5, m + 0.5, 0.5)
    image = axis.imshow(values, vmin=low, vmax=top, cmap=colours, extent=edges, aspect="auto")
    axis.set_facecolor("0.85")
    axis.set_xticks(_ticks(n))
    axis.set_yticks(_ticks(m))
    return image


def _ticks(count: int) -> list[int]:
    """1 and about five further numbers up to `count`."""
    step = max(1, round(count / 5))
    return [1, *range(step if step > 1 else 2, count + 1, step)]


def spectra(values: Mapping[str, Any]) -> Figure:
    """Singular values of updates, relative to the largest, and the share of energy in the first k.

    Args:
      values: by name of the adapter and weight: a spectrum (layers, k).
    """
    figure = _figure(len(values) * _PANEL + 1.2, 2 * _PANEL)
    grid = figure.subplots(2, len(values), squeeze=False, sharey="row", sharex="col")
    for column, (title, spectrum) in enumerate(values.items()):
        spectrum = np.asarray(spectrum)
        number = np.arange(1, spectrum.shape[1] + 1)
        shares = energy(spectrum)
        for layer, colour in enumerate(_by_layer(len(spectrum))):
            relative = np.maximum(spectrum[layer] / spectrum[layer, 0], 1e-8)
            own = {"color": colour, "marker": ".", "markersize": 4, "linewidth": 1}
            grid[0][column].plot(number, relative, **own)
            grid[1][column].plot(number, shares[layer], **own, label=f"layer {layer + 1}")
        flat = {"color": "black", "linestyle": ":", "linewidth": 1}
        grid[1][column].plot(number, number / len(number), **flat, label="all equal")
        grid[0][column].set_title(title)
        grid[0][column].set_yscale("log")
        grid[1][column].set_xlabel("direction k")
        grid[1][column].set_ylim(0, 1.03)
        grid[1][column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    grid[0][0].set_ylabel("singular value / largest")
    grid[1][0].set_ylabel("energy in the first k")
    _legend_beside(figure, grid[1][-1])
    return figure


def by_layer(values: Mapping[str, Any], label: str, chance: float | None = None) -> Figure:
    """One line per name over the layers: effective ranks, similarities, norms.

    Args:
      values: by name: one value per layer.
      label: of the vertical axis.
      chance: a level to mark.
    """
    figure = _figure(4.6, 2.8)
    axis = figure.subplots()
    _lines(axis, values)
    if chance is not None:
        axis.axhline(chance, color="0.4", linestyle=":", label="chance")
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    _legend_beside(figure, axis)
    return figure


def amplification(rows: Mapping[str, Amplification]) -> Figure:
    """Table 7 as a figure: norms of the projections, and the amplification factor by layer.

    Args:
      rows: by name of adapter and weight: the figures of all layers.
    """
    figure = _figure(9.4, 3.3)
    left, right = figure.subplots(1, 2)
    kinds = {
        "in_random": r"$W$ in random directions",
        "in_delta": r"$W$ in the directions of $\Delta W$",
        "in_weight": r"$W$ in its own top directions",
        "delta_norm": r"$\Delta W$ itself",
    }
    width = 0.8 / len(kinds)
    for index, (field, text) in enumerate(kinds.items()):
        found = [np.asarray(getattr(row, field)) for row in rows.values()]
        middle = [float(np.median(values)) for values in found]
        ends = [[m - v.min(), v.max() - m] for m, v in zip(middle, found, strict=True)]
        places = np.arange(len(rows)) + (index - (len(kinds) - 1) / 2) * width
        left.bar(
            places, middle, width * 0.92, color=COLOURS[index], label=text, edgecolor="black",
            linewidth=0.4, hatch=("", "//", "", "..")[index], yerr=np.transpose(ends), capsize=2,
            error_kw={"linewidth": 0.8},
        )  # fmt: skip
    left.set_yscale("log")
    left.set_xticks(range(len(rows)), [name.replace(" ", "\n", 1) for name in rows])
    left.set_ylabel("Frobenius norm\n(median, range of layers)")
    _lines(right, {name: row.factor for name, row in rows.items()})
    right.set_ylabel(r"$\|\Delta W\|_F\ /\ \|U^T W V^T\|_F$")
    right.set_ylim(bottom=0)
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=7)
    return figure


def _lines(axis: Axes, values: Mapping[str, Any]) -> None:
    for (name, own), style in zip(values.items(), _styles(), strict=False):
        layer = np.arange(1, len(own) + 1)
        axis.plot(layer, np.asarray(own), **style, label=name, markersize=5, linewidth=1.2)
    axis.set_xlabel("layer")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _styles() -> Iterator[dict[str, Any]]:
    """A colour and a marker for every line; the line's dashes change after all colours."""
    for dashes in LINES:
        for colour, marker in zip(COLOURS, MARKERS, strict=True):
            yield {"color": colour, "marker": marker, "linestyle": dashes}


def _by_layer(count: int) -> np.ndarray:
    """Colours from the first layer (dark) to the last (light)."""
    return colormaps["viridis"](np.linspace(0, 0.9, count))


def _legend_beside(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
