"""The figures: spectra of the updates, and intruder dimensions against forgetting."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from experiments.structure.measuring import Measured, Results
from lora_jax.analysis.plots import COLOURS, LINES, MARKERS

_LEAST = 1e-7  # of the largest value that is drawn: below it there is nothing but rounding


def spectra(results: Results) -> Figure:
    """Singular values of the updates as they were trained, median over the matrices; one line per adapter."""
    figure, axis = _figure()
    trained = [row for row in results.rows if row.form == "as trained"]
    medians = [median_spectrum(row) for row in trained]
    top = max((float(values.max()) for values in medians if len(values)), default=1.0)
    for row, values, (colour, marker, dashes) in zip(trained, medians, _styles(), strict=False):
        shown = values[values > top * _LEAST]
        every = max(1, len(shown) // 12)
        axis.plot(
            np.arange(1, len(shown) + 1), shown, color=colour, marker=marker, markevery=every,
            linestyle=dashes, markersize=4, linewidth=1.2, label=row.name,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yscale("log")
    low, high = (np.log10(limit) for limit in axis.get_ylim())
    axis.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    axis.set_xlabel("direction k")
    axis.set_ylabel("singular value of the update\n(median over matrices)")
    _legend(figure, axis)
    return figure


def median_spectrum(row: Measured) -> Float[np.ndarray, " n"]:
    """The median k-th singular value of an adapter's updates, up to where half of them have none."""
    changed = [one.values[one.norm > 0] for one in row.structures.values()]
    longest = max(values.shape[-1] for values in changed)
    padded = [np.pad(values, ((0, 0), (0, longest - values.shape[-1]))) for values in changed]
    median: np.ndarray = np.median(np.concatenate(padded), axis=0)
    return median[median > 0]


def forgetting(results: Results) -> Figure:
    """The rise of the loss over intruder dimensions: filled as trained, open after conversion, joined."""
    figure, axis = _figure()
    names = list(dict.fromkeys(row.name for row in results.rows))
    converted = ""
    for name, (colour, marker, _) in zip(names, _styles(), strict=False):
        rows = [row for row in results.rows if row.name == name]
        points = [(row.intruders, results.forgetting(row) or 0.0) for row in rows]
        axis.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, linestyle=":")
        for row, (x, y) in zip(rows, points, strict=True):
            trained = row.form == "as trained"
            converted = converted if trained else row.form
            axis.plot(
                x, y, color=colour, marker=marker, linestyle="none", markersize=7,
                markerfacecolor=colour if trained else "none", label=name if trained else None,
            )  # fmt: skip
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set_xlabel("intruder dimensions of all matrices")
    axis.set_ylabel("rise of the loss per token")
    most = max(row.intruders for row in results.rows)
    beside = max(0.5, 0.05 * most)
    axis.set_xlim(-beside, most + beside)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    handles, labels = axis.get_legend_handles_labels()
    if converted:
        style = {"color": "0.3", "marker": "o", "linestyle": "none"}
        handles.append(Line2D([], [], markerfacecolor="none", **style))  # type: ignore[arg-type]
        labels.append(f"open: as LoRA of {converted}")
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    return figure


def _styles() -> Iterator[tuple[str, str, str]]:
    """Colour, marker and dashes of every line, as in `plots`; after all of them from the beginning."""
    both = list(zip(COLOURS, MARKERS, strict=True))
    for dashes in itertools.cycle(LINES):
        for colour, marker in both:
            yield colour, marker, dashes


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
