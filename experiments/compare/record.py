"""comparison.json: the numbers of a comparison as a file, written and read in one place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.compare.optimum import of_row
from experiments.compare.statistics import REFERENCE, AtRate, Row, contains_zero
from experiments.runs.intervals import Interval
from lora_jax.errors import MissingFileError
from lora_jax.reading import Record, read_object

NAME = "comparison.json"
_DIFFERENCE, _TIMES = f"difference_to_{REFERENCE}", f"times_{REFERENCE}"
_BUDGET = ("examples", "epochs", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Attributes:
      experiment: of its runs, such as `glue`.
      task: of its runs; "" in files of earlier versions, which say neither this nor model and budget.
      model: the base of its runs.
      budget: of a run: training examples of an epoch, epochs, and examples of an update (batch_size); {} in
        files of earlier versions.
      headline: the metric that is compared.
      smaller_is_better: whether a smaller score is the better one.
      rows: the methods, the best score first.
    """

    experiment: str
    task: str = ""
    model: str = ""
    budget: Mapping[str, int] = dataclasses.field(default_factory=dict)
    headline: str
    smaller_is_better: bool
    rows: tuple[Row, ...]


def budget_of(config: Mapping[str, Any], examples: int) -> dict[str, int]:
    """The budget of the runs.

    Args:
      config: in the record of one.
      examples: of an epoch, see `Run`.
    """
    batch_size = config["batch_size"] * config.get("accumulate", 1)
    return {"examples": examples, "epochs": config["epochs"], "batch_size": batch_size}


def budget_text(budget: Mapping[str, int]) -> str:
    """`4,000 training examples, 1 epoch, updates of 16`."""
    examples, epochs, batch_size = (budget[name] for name in _BUDGET)
    ending = "s" * (epochs != 1)
    return f"{examples:,} training examples, {epochs} epoch{ending}, updates of {batch_size}"


def to_json(comparison: Comparison, sizes: Mapping[str, int | None]) -> dict[str, Any]:
    """What the file holds, in the units of run records.

    Args:
      comparison: to be written.
      sizes: bytes of the methods' adapters.
    """
    names = {row.name for row in comparison.rows}
    smaller = comparison.smaller_is_better
    return {
        "experiment": comparison.experiment,
        "task": comparison.task,
        "model": comparison.model,
        "budget": dict(comparison.budget),
        "headline": comparison.headline,
        "smaller_is_better": smaller,
        "reference": REFERENCE if REFERENCE in names else None,
        "methods": [_row_to_json(row, sizes[row.name], smaller) for row in comparison.rows],
    }


def read(folder: Path, made_by: str) -> Comparison:
    """The comparison in a folder.

    Args:
      folder: of the comparison.
      made_by: the command that makes the file, for messages.

    Raises:
      MissingFileError: there is no file; it is written when all runs have ended.
      FileError: it is damaged, or no comparison's.
    """
    path = folder / NAME
    if not path.exists():
        raise MissingFileError(
            f"{path} is missing; it is written when all runs of the comparison have ended, by {made_by}"
        )
    record = read_object(path, f"It is written again by {made_by}")
    budget = record.record("budget") if "budget" in record.values else None
    return Comparison(
        experiment=record.get("experiment", str),
        task=record.get("task", str, ""),
        model=record.get("model", str, ""),
        budget=_budget(budget),
        headline=record.get("headline", str),
        smaller_is_better=record.get("smaller_is_better", bool),
        rows=tuple(_row_from_json(own) for own in record.records("methods")),
    )


def _budget(record: Record | None) -> dict[str, int]:
    if record is None or "max_examples" in record.values:  # of an earlier version
        return {}
    return {name: record.integer(name, 1) for name in _BUDGET}


def _row_to_json(row: Row, size: int | None, smaller: bool) -> dict[str, Any]:
    zero = None if row.difference is None else contains_zero(row.difference)
    return {
        "method": row.name,
        "trained": row.trained,
        "learning_rate": None if row.best is None else row.best.rate,
        "edge": row.edge or None,
        "log10_of_optimum": _to_json(of_row(row, smaller_is_better=smaller)),
        "score": _to_json(row.score),
        _DIFFERENCE: _to_json(row.difference),
        "contains_zero": zero,
        "step_seconds": row.step_seconds,
        _TIMES: row.times,
        "adapter_bytes": size,
        "diverged": row.diverged,
        "rates": [
            {
                "learning_rate": at.rate,
                "scores": {str(seed): score for seed, score in at.scores.items()},
                "mean": _to_json(at.interval),
                "diverged": at.diverged,
                "failed": at.failed,
            }
            for at in row.rates
        ],
    }


def _row_from_json(record: Record) -> Row:
    """The row that `_row_to_json` wrote; what it derived from others is derived again."""
    rates = [_at_rate(own) for own in record.records("rates")]
    by_rate = {at.rate: at for at in rates}
    chosen = _number(record, "learning_rate")
    if not math.isnan(chosen) and chosen not in by_rate:
        raise record.error("learning_rate", f"{chosen:g}", f"one of those in rates, {[*by_rate]}")
    difference = None
    if record.values.get(_DIFFERENCE) is not None:
        own = record.record(_DIFFERENCE)
        difference = Interval(own.get("mean", float), _number(own, "half"))
    return Row(
        name=record.get("method", str),
        trained=record.integer("trained", 0, 2**53),
        rates=tuple(rates),
        best=by_rate.get(chosen),
        difference=difference,
        step_seconds=_number(record, "step_seconds"),
        times=_number(record, _TIMES),
    )


def _at_rate(record: Record) -> AtRate:
    scores = record.record("scores")
    if wrong := [name for name in scores.values if not name.isdecimal()]:
        raise scores.error(wrong[0], "a name that is no seed", "a seed, such as 0")
    return AtRate(
        rate=record.get("learning_rate", float),
        scores={int(name): scores.get(name, float) for name in scores.values},
        diverged=record.integer("diverged", 0),
        failed=record.integer("failed", 0),
    )


def _to_json(value: Interval | None) -> dict[str, float] | None:
    return None if value is None else {"mean": value.value, "half": value.half}


def _number(record: Record, key: str) -> float:
    """A number; NaN, which is null in files, where there is none."""
    return math.nan if record.values.get(key) is None else record.get(key, float)
