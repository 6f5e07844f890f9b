"""Runs all methods of a config, and what came out of them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.runs import folder, intervals
from experiments.runs.fields import check_config
from experiments.runs.vision_fields import VISION
from experiments.vision import contenders, digits, page, runs
from experiments.vision.runs import Contender, Run
from lora_jax import files, partition, run_folder
from lora_jax.errors import InputError
from lora_jax.training.records import environment

_REMEDY = "Use another --workdir, or the same config to go on"


def measure(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Pre-trains, adapts by every method, and writes result.json, the page and the plot.

    Args:
      config: from `configs/vision`.
      workdir: the folder to write to; runs that are there are gone on with, or read back.

    Returns:
      The record.

    Raises:
      InputError: a field is wrong, or the folder holds runs of another config.
      DivergedError: pre-training diverged.
    """
    _check(config)
    folder.check_place(workdir)
    plain = folder.plain(config)
    record = run_folder.finished(workdir, plain, (), _REMEDY)
    if record is None:
        folder.claim(workdir, config)
        record = run_folder.plain(_measured(config, workdir))  # every run locks its own folder
        files.write_json(workdir / run_folder.RESULT, record)
    page.write(workdir, record)
    return record


def _check(config: ConfigDict) -> None:
    check_config(config, VISION)
    for name in config.methods:
        contenders.method(name, config.model.kind)
    if config.rate_seeds > len(config.seeds):
        raise InputError(
            f"rate_seeds is {config.rate_seeds}, and there are {len(config.seeds)} seeds"
        )
    contenders.net(config)


def _measured(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    found = digits.load(config)
    pretrained = runs.base(config, found, workdir)
    pretrained.eval()
    whole = Contender(config, "full", pretrained, found).step_flops()
    rows, every = [], list[Run]()
    for name in config.methods:
        contender = Contender(config, name, pretrained, found)
        own, rate = _runs(config, contender, workdir)
        flops = contender.step_flops()
        rows.append(_row(own, rate, contender, flops=flops, whole=whole))
        every += own
    return {
        "config": folder.plain(config),
        "base": {
            "parameters": partition.count(partition.parameters(pretrained)),
            "upright": runs.accuracy(pretrained, found.held_out),
            "test": runs.accuracy(pretrained, found.test),
        },
        "rows": rows,
        "runs": [dataclasses.asdict(run) for run in every],
        **environment(),
    }


def _runs(
    config: ConfigDict, contender: Contender, workdir: Path
) -> tuple[list[Run], float | None]:
    """All runs of a method, and the learning rate that was chosen; None if runs diverged at every rate."""
    first, others = config.seeds[: config.rate_seeds], config.seeds[config.rate_seeds :]
    own = [contender.run(rate, seed, workdir) for rate in config.learning_rates for seed in first]
    rate = best_rate(own)
    if rate is not None:
        own += [contender.run(rate, seed, workdir) for seed in others]
    return own, rate


def best_rate(own: Sequence[Run]) -> float | None:
    """The rate with the best mean accuracy on validation pictures, of those at which no run diverged.

    The lower one of equals.
    """
    means = {}
    for rate in sorted({run.rate for run in own}):
        scores = [run.validation for run in own if run.rate == rate]
        if all(map(math.isfinite, scores)):
            means[rate] = statistics.fmean(scores)
    return max(means, key=lambda rate: means[rate]) if means else None


def _row(
    own: Sequence[Run], rate: float | None, contender: Contender, *, flops: int, whole: int
) -> dict[str, Any]:
    chosen = [run for run in own if run.rate == rate]
    scores = [run.test for run in chosen if math.isfinite(run.test)]
    return {
        "method": contender.name,
        "statistics": "move" if contender.moves else "stay",
        "rate": rate,
        "accuracy": intervals.over_seeds(scores)._asdict() if scores else None,
        "trained": own[0].trained,
        "step_flops": flops,
        "relative_flops": flops / whole,
        "adapter_bytes": max((run.adapter_bytes for run in chosen), default=0),
        "seconds": statistics.median(run.seconds for run in chosen) if chosen else None,
        "diverged": sum(not math.isfinite(run.validation) for run in own),
    }


def cache_programs(place: str) -> None:
    """Lets the runs of a command share their compiled programs, which takes longer than they run.

    Args:
      place: a folder, for this command alone.
    """
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
