"""Figures of the analysis: similarity maps, spectra, amplification.

Every function returns a matplotlib `Figure` and leaves no state behind; `save` writes it, and a notebook
shows it with `display(figure)` after `%matplotlib inline`. Colour-blind readers and readers on paper can
read all of them: lines have the colours of Okabe and Ito and different markers, maps are in viridis
(dark to light in grey print too), and maps of differences in PuOr.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from lora_jax.analysis.amplification import Amplification
from lora_jax.analysis.similarity import Matrix, random_mean
from lora_jax.analysis.spectra import energy
from lora_jax.errors import InputError
from lora_jax.files import make_folder, write_bytes

Maps = Mapping[str, Mapping[str, Float[Matrix, "_m _n"]]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
_PANEL = 2.3  # inches


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all; makes the folder if needed."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    make_folder(path.parent)
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
      maps: phi by row of the figure (layers), then by column (weights).
      d: dimension of the space, for the chance level max(i, j) / d.
      rows: what i counts, such as "i: directions of A, r = 8".
      columns: what j counts.
      chance: `drawn` adds a last column with the chance level in the same colours; `subtracted` shows
        phi minus chance.
      zoom: adds columns that show the triangle j <= i <= zoom; 0 adds none.
      top: the value at the end of the colour scale; by default one of 0.1, 0.2, 0.5 and 1.

    Raises:
      ValueError: there is no map.
    """
    if not maps or not all(maps.values()):
        raise InputError("there is no map to draw")
    titles = list(next(iter(maps.values())))
    shown = {
        label: [np.asarray(by_title[title]) for title in titles] for label, by_title in maps.items()
    }
    levels = {phi.shape: random_mean(d, *phi.shape) for row in shown.values() for phi in row}
    if chance == "subtracted":
        shown = {label: [phi - levels[phi.shape] for phi in row] for label, row in shown.items()}
    top = top or _round_up(max(np.abs(phi).max() for row in shown.values() for phi in row))
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
            image = _draw_map(axis, panel, *colours)
            axis.set_title(title)
        axes[0].set_title(f"{label} {titles[0]}".strip())
        axes[0].set_ylabel(rows)
    for axis in grid[-1]:
        axis.set_xlabel(columns)
    meaning = r"$\phi$" if chance == "drawn" else r"$\phi$ minus chance"
    figure.colorbar(image, ax=grid, label=meaning, shrink=0.8 / len(maps) ** 0.5)
    return figure


def _round_up(value: float) -> float:
    return next((top for top in (0.1, 0.2, 0.5) if value <= top), 1.0)


def _triangle(phi: np.ndarray, zoom: int) -> np.ma.MaskedArray:
    corner = phi[:zoom, :zoom]
    return np.ma.masked_array(corner, np.triu(np.ones(corner.shape, bool), 1))


def _draw_map(axis: Axes, values: np.ndarray, low: float, top: float, colours: str) -> AxesImage:
    m, n = values.shape
    edges = (0.5, n + 0.5, m + 0.5, 0.5)
    image = axis.imshow(values, vmin=low, vmax=top, cmap=colours, extent=edges, aspect="auto")
    axis.set_facecolor("0.85")
    axis.set_xticks(_ticks(n))
    axis.set_yticks(_ticks(m))
    return image


def _ticks(count: int) -> list[int]:
    """The numbers at an axis from 1 to `count`: 1 and about five others."""
    step = max(1, round(count / 5))
    return [1, *range(step if step > 1 else 2, count + 1, step)]


def spectra(values: Mapping[str, Float[Matrix, "_layers _k"]]) -> Figure:
    """Singular values of updates, relative to the largest, and the share of energy in the first k.

    Args:
      values: spectra by name of the adapter and weight.
    """
    figure = _figure(len(values) * _PANEL + 1.2, 2 * _PANEL)
    grid = figure.subplots(2, len(values), squeeze=False, sharey="row", sharex="col")
    for above, below, (title, spectrum) in zip(*grid, values.items(), strict=True):
        spectrum = np.asarray(spectrum)
        number = np.arange(1, spectrum.shape[1] + 1)
        shares = energy(spectrum)
        for layer, colour in enumerate(_layer_colours(len(spectrum))):
            relative = np.maximum(spectrum[layer] / spectrum[layer, 0], 1e-8)
            style = {"color": colour, "marker": ".", "markersize": 4, "linewidth": 1}
            above.plot(number, relative, **style)
            below.plot(number, shares[layer], **style, label=f"layer {layer + 1}")
        flat = {"color": "black", "linestyle": ":", "linewidth": 1}
        below.plot(number, number / len(number), **flat, label="all equal")
        above.set_title(title)
        above.set_yscale("log")
        below.set_xlabel("direction k")
        below.set_ylim(0, 1.03)
        below.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    grid[0][0].set_ylabel("singular value / largest")
    grid[1][0].set_ylabel("energy in the first k")
    _legend_beside(figure, grid[1][-1])
    return figure


def by_layer(
    values: Mapping[str, Float[Matrix, " _layers"]], label: str, chance: float | None = None
) -> Figure:
    """One line per name over the layers: effective ranks, similarities, norms.

    Args:
      values: one value per layer, by name.
      label: text at the vertical axis.
      chance: a level to mark with a dotted line.
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
      rows: the numbers of all layers by name of the adapter and weight.
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
        norms = [np.asarray(getattr(row, field)) for row in rows.values()]
        medians = [float(np.median(values)) for values in norms]
        whiskers = [[m - v.min(), v.max() - m] for m, v in zip(medians, norms, strict=True)]
        places = np.arange(len(rows)) + (index - (len(kinds) - 1) / 2) * width
        left.bar(
            places, medians, width * 0.92, color=COLOURS[index], label=text, edgecolor="black",
            linewidth=0.4, hatch=("", "//", "", "..")[index], yerr=np.transpose(whiskers), capsize=2,
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


def _lines(axis: Axes, values: Mapping[str, Float[Matrix, " _layers"]]) -> None:
    for (name, per_layer), style in zip(values.items(), _styles(), strict=False):
        axis.plot(
            np.arange(1, len(per_layer) + 1), np.asarray(per_layer), color=style.colour,
            marker=style.marker, linestyle=style.dashes, label=name, markersize=5, linewidth=1.2,
        )  # fmt: skip
    axis.set_xlabel("layer")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))


class _Style(NamedTuple):
    """How a line looks."""

    colour: str
    marker: str
    dashes: str


def _styles() -> Iterator[_Style]:
    """A style for every line; the dashes change only after all colours have been used."""
    for dashes in LINES:
        for colour, marker in zip(COLOURS, MARKERS, strict=True):
            yield _Style(colour, marker, dashes)


def _layer_colours(count: int) -> Float[np.ndarray, "{count} rgba=4"]:
    """Colours from the first layer (dark) to the last (light)."""
    return colormaps["viridis"](np.linspace(0, 0.9, count))


def _legend_beside(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
