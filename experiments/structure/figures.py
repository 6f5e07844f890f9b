"""The figures: spectra of the updates, and intruder dimensions against forgetting."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from experiments.runs import looks
from experiments.structure.measuring import Measured, Results
from lora_jax.analysis.plots import LINES

_LEAST = 1e-7  # of the largest value that is drawn: below it there is nothing but rounding


def spectra(results: Results) -> Figure:
    """Singular values of the updates as they were trained, median over the matrices; one line per adapter.

    Adapters that change no matrix have no line.
    """
    figure, axis = _figure()
    trained = [row for row in results.rows if row.form == "as trained" and row.structures]
    style_of = looks.styles([row.name for row in trained])
    medians = [median_spectrum(row) for row in trained]
    top = max((float(values.max()) for values in medians if len(values)), default=1.0)
    for row, values, dashes in zip(trained, medians, itertools.cycle(LINES), strict=False):
        look = style_of[row.name]
        shown = values[values > top * _LEAST]
        every = max(1, len(shown) // 12)
        axis.plot(
            np.arange(1, len(shown) + 1), shown, color=look.colour, marker=look.marker, markevery=every,
            linestyle=dashes, markersize=look.size(4), linewidth=1.2, label=row.name,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yscale("log")
    low, high = (np.log10(limit) for limit in axis.get_ylim())
    axis.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    axis.set_xlabel("direction k (logarithmic)")
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
    style_of = looks.styles(list(dict.fromkeys(row.name for row in results.rows)))
    converted = ""
    for name, look in style_of.items():
        rows = [row for row in results.rows if row.name == name]
        points = [(row.intruders, results.forgetting(row) or 0.0) for row in rows]
        axis.plot(*zip(*points, strict=True), color=look.colour, linewidth=0.8, linestyle=":")
        for row, (x, y) in zip(rows, points, strict=True):
            trained = row.form == "as trained"
            converted = converted if trained else row.form
            axis.plot(
                x, y, color=look.colour, marker=look.marker, linestyle="none",
                markersize=look.size(6 if trained else 9),
                markerfacecolor=look.colour if trained else "none", label=name if trained else None,
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


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
