"""The figures: slow-down by batch size and length of each contender, and Figure 5 of the paper.

Figure 5 draws batch size against the size of the bottleneck, with a row of panels for each kind of adapter
and a panel for each length. No bottleneck, r = 0, is the base's own program: there stands the merged model,
which is that program, timed as the others are. Its slow-down is the noise of the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.latency import heat_maps
from experiments.latency.contenders import BASE, FIGURE_5, MERGED
from experiments.latency.heat_maps import Panel, Row
from experiments.latency.results import Record, of_config, of_figure_5
from experiments.latency.tables import label

_ACROSS = 3  # panels in a row, at most


def slow_downs(record: Record) -> Figure:
    """Draws the slow-downs of the contenders by batch size and length, a panel for each."""
    names = [name for name in of_config(record) if name != BASE]
    batches, lengths = _grid(record)
    panels = [
        _panel(record, _title(record, name), [(name, length) for length in lengths])
        for name in names
    ]
    rows = [
        Row("tokens of a row", panels[start : start + _ACROSS])
        for start in range(0, len(panels), _ACROSS)
    ]
    return heat_maps.draw(rows, lengths, batches)


def figure_5(record: Record) -> Figure:
    """Draws the slow-downs of Adapter H and L by batch size and bottleneck, a panel for each length."""
    batches, lengths = _grid(record)
    found = of_figure_5(record)
    sizes = sorted({size for by_size in found.values() for size in by_size})
    rows = []
    for number, (method, by_size) in enumerate(found.items()):
        names = [MERGED, *(by_size[size] for size in sizes)]
        panels = [
            _panel(record, "" if number else f"{length} tokens", [(name, length) for name in names])
            for length in lengths
        ]
        rows.append(Row(f"{FIGURE_5[method]}: bottleneck r", panels))
    return heat_maps.draw(rows, [0, *sizes], batches)


def _grid(record: Record) -> tuple[list[int], list[int]]:
    """Batch sizes and lengths."""
    points = record["points"]
    return sorted({p["batch"] for p in points}), sorted({p["length"] for p in points})


def _panel(record: Record, title: str, rows: Sequence[tuple[str, int]]) -> Panel:
    """A panel whose rows are contenders at a length."""
    found = {(p["batch"], p["length"]): p["contenders"] for p in record["points"]}
    batches, _ = _grid(record)

    def per_cent(part: str) -> np.ndarray:
        cells = [
            [found[batch, length][name]["slow_down"][part] for batch in batches]
            for name, length in rows
        ]
        return 100 * np.array(cells)

    return Panel(title, per_cent("value"), per_cent("half"))


def _title(record: Record, name: str) -> str:
    values = record["contenders"][name]["values"]
    if not values:
        return label(name)
    short = f"{values / 1e6:.1f}M" if values >= 1e6 else f"{values / 1e3:.0f}k"
    return f"{label(name)} ({short})".replace("$", r"\$")  # which would begin mathematics
