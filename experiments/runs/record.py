"""The run record: what a task's runs did, seed by seed and all together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.runs import process
from lora_jax import reading
from lora_jax.costs import chips
from lora_jax.errors import DivergedError
from lora_jax.training.records import environment, peak_memory, spread

Record = Mapping[str, Any]
MADE_ANEW = "Delete the file and give the same command again: it is made anew"
_SLOW_INPUT = 0.02  # share of the training time from which the input is worth a word
_SPEEDS = ("seconds", "examples_per_second", "tokens_per_second", "padding_efficiency")


def best_seed(runs: Mapping[int, Record], headline: str, smaller: bool = False) -> int | None:
    """The seed whose best epoch has the best headline; None if all diverged in their first epoch."""
    sign = 1 if smaller else -1
    scores = {seed: run["best"][headline] for seed, run in runs.items() if run["best"] is not None}
    order = sorted(scores, key=lambda seed: (math.isnan(scores[seed]), sign * scores[seed]))
    return order[0] if order else None


def chosen_adapter(
    runs: Mapping[int, Record], headline: str, smaller: bool = False
) -> dict[str, int] | None:
    """Seed and epoch of the adapter that stands for all runs, see `best_seed`."""
    best = best_seed(runs, headline, smaller)
    return None if best is None else {"seed": best, "epoch": runs[best]["best_epoch"]}


def by_seed(runs: Mapping[int, Record]) -> dict[str, Record]:
    """The records of all seeds as JSON has them."""
    return {str(seed): record for seed, record in runs.items()}


def training_record(runs: Sequence[Record], headline: str) -> dict[str, Any]:
    """What all seeds give together: scores at best and last epoch, speed, memory, versions.

    A seed that diverged has no last epoch, perhaps no best one either: its score is NaN.

    Args:
      runs: records of all seeds.
      headline: the score that stands where no seed has any.
    """

    def over_seeds(which: str) -> dict[str, Any]:
        names = next((list(run[which]) for run in runs if run[which]), [headline])
        return {m: spread([(run[which] or {}).get(m, math.nan) for run in runs]) for m in names}

    names = ("examples", "tokens", "slots", "seconds", "compile_seconds", "flops")
    total = {name: sum(run[name] for run in runs) for name in names}
    devices, chip = jax.device_count(), chips.by_device_kind(jax.devices()[0].device_kind)
    stepping = total["seconds"] - total["compile_seconds"]
    waiting = sum(
        run.get("waiting_seconds", 0.0) for run in runs
    )  # earlier versions did not count it

    def timed(name: str) -> float:
        """The part of a total that was done in `stepping`."""
        return sum(run[name] * _after_compilation(run) for run in runs)

    def rate(name: str) -> float:
        """A second, without compilation unless there was nothing else."""
        if stepping > 0 and (counted := timed(name)):
            return counted / stepping
        return float(total[name] / total["seconds"])

    flops = timed("flops")
    return {
        "best": over_seeds("best"),
        "last": over_seeds("last"),
        "steps": runs[0]["step"],
        "seconds": total["seconds"],
        "compile_seconds": total["compile_seconds"],
        "waiting_seconds": waiting,
        "examples_per_second": rate("examples"),
        "tokens_per_second": rate("tokens"),
        "padding_efficiency": total["tokens"] / total["slots"] if total["slots"] else 1.0,
        # Without compilation; recomputation does not count. MFU is null where the peak is not known.
        "flops": total["flops"],
        "flops_per_second_and_device": flops / stepping / devices if flops and stepping else None,
        "mfu": chips.mfu(flops, stepping, devices, chip) if flops and stepping else None,
        "memory": peak_memory(),
        "process": {
            "processor": process.processor(),
            "set": process.applied(),
            "left": process.left(),
        },
        **environment(),
    }


def _after_compilation(run: Record) -> float:
    """Share of a run's steps that are not the first one of their shape, whose time is compilation's."""
    steps: int = run["step"]
    return max(0, steps - len(run.get("shapes", ()))) / steps if steps else 0.0


def check_converged(result: Record, folder: Path) -> None:
    """Raises DivergedError if a run record has seeds that diverged."""
    seeds = {
        f"seed {s}": run["diverged"] for s, run in result["seeds"].items() if "diverged" in run
    }
    if steps := {name: step for name, step in seeds.items() if step}:
        raise DivergedError(steps, folder)


def shown(value: float | None) -> float:
    """A number of a run record for a table; null, as files have what is no number, is NaN."""
    return math.nan if value is None else value


def check_record(path: Path, record: Record) -> None:
    """Checks what commands show of a finished run's record; NaN and infinity are null in it.

    Args:
      path: of result.json, for messages.
      record: its content.

    Raises:
      FileError: a value is missing or of another type.
    """
    values = reading.Record(path, record, remedy=MADE_ANEW)
    for name in ("task",) if "method" not in record else ("task", "method", "model", "headline"):
        values.get(name, str)
    parameters = values.record("parameters")
    for name in parameters.values:
        parameters.get(name, int)
    for seed in values.get("seeds", dict):
        values.record("seeds").get(seed, dict)
    for which in ("best", "last", "test"):
        if which in record or (which != "test" and "steps" in record):
            for metric in values.get(which, dict):
                _check_spread(values.record(which).record(metric))
    if "steps" in record:
        for name in _SPEEDS:
            values.get(name, float)
        for name in ("flops_per_second_and_device", "mfu"):
            if record.get(name, 0) is not None:
                values.get(name, float)


def _check_spread(spread: reading.Record) -> None:
    for name in ("median", "mean", "std", "min", "max"):
        if spread.values.get(name, 0) is not None:
            spread.get(name, float)
    for number, value in enumerate(spread.get("values", list)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise spread.error(f"values[{number}]", repr(value)[:60], "a number")


def speed(result: Record) -> str:
    """The speed of a run record's training, in words."""
    rate, share = result["flops_per_second_and_device"], result["mfu"]
    parts = [
        f"{result['seconds']:.0f} s of training{_compiling(result)}",
        f"{result['examples_per_second']:.1f} examples/s",
        f"{result['tokens_per_second']:.0f} tokens/s",
        f"{100 * result['padding_efficiency']:.0f}% real tokens",
    ]
    if rate:
        parts.append(f"{rate / 1e9:,.0f} GFLOP/s per device")
    if share is not None:
        parts.append(f"MFU {100 * share:.1f}%")
    waiting = result.get("waiting_seconds", 0.0) / result["seconds"] if result["seconds"] else 0.0
    if waiting > _SLOW_INPUT:
        parts.append(f"{waiting:.0%} of the time spent waiting for batches to be packed")
    return ", ".join(parts)


def _compiling(result: Record) -> str:
    """How much of the time was compilation, which the speeds beside it leave out; unknown of old records."""
    compiling = result.get("compile_seconds", 0.0)
    return f" ({compiling:.0f} s of it the first steps, which compile)" if compiling >= 1 else ""


def parameters_text(result: Record) -> str:
    """The parameters of a run record by group, in words."""
    return "parameters: " + ", ".join(f"{k} {v:,}" for k, v in result["parameters"].items())


def scores_record(records: Sequence[Mapping[str, Any]], notes: Mapping[str, str]) -> dict[str, Any]:
    """The test scores of all seeds; a metric that one of them lacks is missing.

    A seed that diverged was not decoded: its scores are NaN.

    Args:
      records: of every seed.
      notes: on the data, by split.
    """
    decoded = [record for record in records if "test" in record]
    first = decoded[0]["test"] if decoded else {}
    names = [name for name in first if all(name in r["test"] for r in decoded)]
    none: Mapping[str, float] = {}
    return {
        "test": {
            name: spread([r.get("test", none).get(name, math.nan) for r in records])
            for name in names
        },
        "missing": {name: why for record in decoded for name, why in record["missing"].items()},
        "notes": dict(notes)
        | {name: note for record in decoded for name, note in record["metric_notes"].items()},
    }
