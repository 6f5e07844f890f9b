"""What an item's command left: scores of every seed, and the records that they are from."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.compare import record as comparison
from experiments.report import checked
from experiments.reproduce.items import RECORDS, Item
from lora_jax.errors import FileError
from lora_jax.reading import Record

_POINTS = "points"
_SEED = re.compile(r",?seed=\d+")
Scores = dict[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished item.

    Attributes:
      scores: by name the value of every seed, NaN where one diverged. In a sweep the name has the point in
        front, in a comparison it is the method at its best rate. Of a latency measurement it is the share by
        which a contender is slower than the base, `1 x 128: adapter_h`; of an analysis of subspaces the
        median over layers of a column, `r8 query: factor`, of phi at i = j = 1 of A's directions where
        there are several.
      seconds: of training, all runs together; None if no record says it, or nothing was trained.
      made: the day on which the last record was written, 2026-12-01.
      on: the machine, in words.
      versions: of packages, as the first record has them.
      inputs: digests of the data and the model, as the first record has them.
      records: of the runs as they wrote them, by folder (`.` for one alone), digests included.
    """

    scores: Scores
    seconds: float | None
    made: str
    on: str
    versions: Mapping[str, str | None]
    inputs: Mapping[str, str]
    records: Mapping[str, Mapping[str, Any]]


def read(item: Item, folder: Path) -> Outcome:
    """Reads a finished item.

    Args:
      item: whose command worked in the folder.
      folder: see `items.folder`.

    Raises:
      FileError, MissingFileError: a record is missing, damaged, or has not the metrics.
    """
    if item.kind in ("run", "latency", "subspace"):
        found = {".": checked.read(folder / RECORDS[item.kind])}
    else:
        paths = sorted((folder / _POINTS).glob("*/" + RECORDS["run"]))
        found = {path.parent.name: checked.read(path) for path in paths}
    if item.kind == "comparison":
        scores = _of_comparison(folder)
    elif item.kind == "sweep":
        scores = _of_points(found, item.metrics)
    elif item.kind == "latency":
        scores = _of_latency(found["."], item.metrics)
    elif item.kind == "subspace":
        scores = _of_subspaces(found["."], item.metrics)
    else:
        scores = {name: _values(found["."], name) for name in item.metrics}
    known = [record.values.get("seconds") for record in found.values()]
    seconds = [value for value in known if isinstance(value, int | float)]
    newest = max(record.path.stat().st_mtime for record in found.values())
    first = next(iter(found.values())).values
    about = first.get("environment", first)
    return Outcome(
        scores=scores,
        seconds=sum(seconds) if seconds else None,
        made=datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat(),
        on=_machine(about),
        versions=about.get("versions", {}),
        inputs=first.get("inputs", {}),
        records={name: record.values for name, record in found.items()},
    )


def _machine(record: Mapping[str, Any]) -> str:
    """`2 x cpu, AMD EPYC` of a record; parts that it has not are left out."""
    device, processor = record.get("device", {}), record.get("process", {}).get("processor", {})
    kind = f"{device.get('count', 1)} x {device.get('kind', 'unknown device')}"
    if device.get("backend") != "cpu" or not processor.get("name"):
        return kind
    cores = device.get("cpu_cores")
    return f"{processor['name']}, {processor.get('cores') or cores} cores used of {cores}"


def _of_points(found: Mapping[str, Record], metrics: tuple[str, ...]) -> Scores:
    """Seeds of a point are one score."""
    scores: Scores = {}
    for folder, record in found.items():
        point = _SEED.sub("", folder).strip(",")
        for metric in metrics:
            if _has(record, metric):
                name = f"{point}: {metric}"
                scores[name] = (*scores.get(name, ()), *_values(record, metric))
    return scores


def _of_comparison(folder: Path) -> Scores:
    rows = comparison.read(folder, "experiments.compare").rows
    return {row.name: tuple(row.best.scores.values()) for row in rows if row.best is not None}


def _of_latency(record: Record, names: tuple[str, ...]) -> Scores:
    found = {
        f"{point['batch']} x {point['length']}: {name}": figures["slow_down"]
        for point in record.get("points", list)
        for name, figures in point["contenders"].items()
    }
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise FileError(
            record.path, "points", f"no {missing[0]!r}", "every contender that is a score"
        )
    return {name: (float(found[name]["value"]),) for name in names}


def _of_subspaces(record: Record, columns: tuple[str, ...]) -> Scores:
    layers: dict[str, list[float]] = {}
    tables = record.record("tables")
    for table in tables.values:
        for row in tables.get(table, list):
            if row.get("directions", "a") != "a" or (row.get("i", 1), row.get("j", 1)) != (1, 1):
                continue
            for column in columns:
                if column in row:
                    name = f"{row.get('pair') or row['adapter']} {row['weight']}: {column}"
                    layers.setdefault(name, []).append(float(row[column]))
    return {name: (statistics.median(values),) for name, values in layers.items()}


def _tables(record: Record) -> tuple[str, ...]:
    """Where a run's scores are: those of decoded texts first."""
    return ("test", "best") if record.values.get("split") else ("best",)


def _has(record: Record, metric: str) -> bool:
    return any(record.values.get(table, {}).get(metric) for table in _tables(record))


def _values(record: Record, metric: str) -> tuple[float, ...]:
    for table in _tables(record):
        if record.values.get(table, {}).get(metric):
            values = record.record(table).record(metric).get("values", list)
            return tuple(math.nan if value is None else float(value) for value in values)
    known = [name for table in _tables(record) for name in record.values.get(table, {})]
    raise FileError(record.path, "best", f"the scores {known}", f"the score {metric!r} among them")
