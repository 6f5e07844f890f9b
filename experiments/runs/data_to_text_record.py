"""The run record of data-to-text experiments, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.paper.scores import as_in_paper
from experiments.runs import folder as workdirs
from experiments.runs.record import best_seed, speed, training_record
from lora_jax.training.records import environment, peak_memory, spread


def record_of(
    config: ConfigDict, method: str, notes: Mapping[str, str], runs: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """The run record of all seeds.

    Args:
      config: of the run.
      method: its name.
      notes: on the data, by split.
      runs: what every seed gave, by seed.
    """
    records = list(runs.values())
    names = [name for name in records[0]["test"] if all(name in r["test"] for r in records)]
    result = {
        "task": config.dataset,
        "method": method if config.epochs else "none",
        "model": config.model.name,
        "headline": "loss",
        "split": config.data.decode_split,
        "test": {name: spread([r["test"][name] for r in records]) for name in names},
        "missing": {name: why for record in records for name, why in record["missing"].items()},
        "notes": dict(notes)
        | {name: note for record in records for name, note in record["metric_notes"].items()},
        "seeds": {str(seed): record for seed, record in runs.items()},
        "config": workdirs.plain(config),
    }
    if not config.epochs:
        return {**result, "memory": peak_memory(), **environment()}
    best = best_seed(runs, "loss", smaller=True)
    chosen = {"seed": best, "epoch": runs[best]["best_epoch"]}
    return {**result, "adapter": chosen, **training_record(records)}


def table(result: dict[str, Any]) -> str:
    """A short text of a run record."""
    lines = [f"{result['task']} {result['split']}  {result['method']}  {result['model']}"]
    for name, value in result["test"].items():
        mean, std = (as_in_paper(name, value[key]) for key in ("mean", "std"))
        lines.append(f"  {name:18s} {mean:>8s} ±{std}   ({len(value['values'])} seeds)")
    lines += [f"  {name:18s}   missing: {why}" for name, why in result["missing"].items()]
    lines += [f"  note on {name}: {text}" for name, text in result["notes"].items() if text]
    counts = ", ".join(f"{k} {v:,}" for k, v in result["parameters"].items())
    lines.append(f"  parameters: {counts}")
    if "best" in result:
        lines.append(f"  validation loss {result['best']['loss']['mean']:.4f}; {speed(result)}")
    for seed, record in result["seeds"].items():
        own = record["decode"]
        lines.append(
            f"  seed {seed}: decoded {own['prompts']} inputs in {own['seconds']:.0f} s, "
            f"{own['tokens_per_second']:.0f} tokens/s"
        )
    return "\n".join(lines)
