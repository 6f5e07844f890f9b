"""The tables of a measurement: one like Table 1 with the paper's numbers beside, and those of all points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.latency.contenders import BASE, MERGED, POOL, UNMERGED
from experiments.latency.results import Record, of_config
from experiments.paper.latency import TABLE_1, VALUES, PaperPoint
from experiments.runs import text_tables

_NAMES = {MERGED: "LoRA, merged", UNMERGED: "LoRA, unmerged", POOL: "LoRA, pool"}


def label(name: str) -> str:
    """The name of a contender in tables and figures."""
    return _NAMES.get(name, name)


def time_text(figures: Mapping[str, Any]) -> str:
    """Milliseconds with their interval, and the slow-down with its: `3.1±0.2 (+8.4±1.0%)`."""
    mean, slower = figures["mean_ms"], figures["slow_down"]
    text = _with_half(mean["value"], mean["half"])
    if slower is None:
        return text
    return f"{text} ({_with_half(100 * slower['value'], 100 * slower['half'], sign='+')}%)"


def _with_half(value: float, half: float, sign: str = "") -> str:
    """A number and half of its interval, with the digits that two digits of the latter leave."""
    digits = 1 if half <= 0 else min(max(1 - math.floor(math.log10(half)), 0), 2)
    return f"{value:{sign}.{digits}f}±{half:.{digits}f}"


def table_1(record: Record) -> str:
    """The contenders at the points of Table 1: here, and in the paper."""
    measured = {(p["batch"], p["length"]): p["contenders"] for p in record["points"]}
    header = ["", "values"]
    for paper in TABLE_1:
        header += [f"{paper.batch} x {paper.length}, here", f"paper ({paper.trained})"]
    rows = []
    for name in of_config(record):
        row = [label(name), values_text(record["contenders"][name]["values"])]
        for paper in TABLE_1:
            here = measured.get((paper.batch, paper.length))
            row += [time_text(here[name]) if here else "–", _of_paper(record, name, paper)]
        rows.append(row)
    return text_tables.pipe_table(header, rows)


def _of_paper(record: Record, name: str, paper: PaperPoint) -> str:
    """The paper's number for a contender: of adapters, that for the contender nearest in size."""
    if name in (BASE, MERGED):
        return paper.base
    about = record["contenders"]
    method = about[name]["method"]
    if method not in paper.adapters:
        return "–"

    def far(other: str) -> float:
        values: int = about[other]["values"]
        share, printed = values / record["base_values"], paper.values / VALUES
        return abs(math.log(share / printed))

    alike = [other for other in of_config(record) if about[other]["method"] == method]
    return paper.adapters[method] if name == min(alike, key=far) else "–"


def values_text(values: int) -> str:
    """Values that a contender adds to the base."""
    return f"{values:,}" if values else "–"


def all_points(record: Record, names: Sequence[str]) -> str:
    """Every point of the grid, one row each, with some of the contenders."""
    rows = [
        [f"{p['batch']} x {p['length']}", *(time_text(p["contenders"][name]) for name in names)]
        for p in record["points"]
    ]
    return text_tables.pipe_table(["batch x length", *map(label, names)], rows)


def medians(record: Record, names: Sequence[str]) -> str:
    """Slow-downs of medians in per cent, which single trials that something held up do not move.

    Args:
      record: from `results.record`.
      names: of the contenders, without the base.
    """
    rows = []
    for point in record["points"]:
        of = {name: figures["median_ms"] for name, figures in point["contenders"].items()}
        per_cent = [f"{100 * (of[name] / of[BASE] - 1):+.1f}%" for name in names]
        rows.append([f"{point['batch']} x {point['length']}", f"{of[BASE]:.2f}", *per_cent])
    return text_tables.pipe_table(["batch x length", "base, ms", *map(label, names)], rows)
