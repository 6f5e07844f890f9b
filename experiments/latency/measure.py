"""A whole measurement: makes the contenders, times the points that are missing, and writes the page."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.latency import contenders, page, programs, results, trials
from experiments.latency.contenders import Contenders
from experiments.latency.results import Record
from experiments.latency.trials import Point
from experiments.runs import folder
from experiments.runs.fields import check_config
from experiments.runs.latency_fields import LATENCY, LATENCY_OPEN
from lora_jax import locking, run_files, run_folder
from lora_jax.files import check_folder
from lora_jax.training.records import environment

_REMEDY = "Use another --workdir, or the same config to go on"


def measure(config: ConfigDict, workdir: Path) -> Record:
    """Times the contenders of a config at all points of its grid, and writes what came out.

    Args:
      config: from `configs/latency`.
      workdir: the folder to write to; points whose trials are there are not timed again.

    Returns:
      The record, see `results.record`.

    Raises:
      FileNotFoundError, InputError: a field of the config is wrong, the model cannot be read, a method does
        not fit it, or the folder holds another measurement.
    """
    check_config(config, LATENCY, LATENCY_OPEN)
    contenders.check(config)
    folder.check_place(workdir)
    check_folder(workdir / "figures")
    run_folder.finished(workdir, folder.plain(config), (), _REMEDY)
    with locking.exclusive(workdir):
        return _measured(config, workdir)


def _measured(config: ConfigDict, workdir: Path) -> Record:
    plain = folder.plain(config)
    run_folder.finished(workdir, plain, (), _REMEDY)  # another program may have claimed it just now
    grid = list(itertools.product(config.batch_sizes, config.lengths))
    path, here = workdir / trials.TRIALS, _environment()
    points = trials.read(path, grid, config.trials)
    trials.check_environment(points, here, workdir)
    found = contenders.make(config)
    folder.claim(workdir, config)
    missing = [place for place in grid if place not in points]
    with tqdm(total=len(missing) * config.trials, unit="round", disable=None) as bar:
        for batch, length in missing:
            bar.set_description(f"{batch} x {length}")
            point = _point(config, found, (batch, length), here, bar)
            trials.append(path, point)
            points[batch, length] = point
    described = {name: contender.described() for name, contender in found.by_name.items()}
    in_order = [points[place] for place in grid]
    record = run_files.signed(
        workdir, results.record(plain, here, described, found.base.values, in_order)
    )
    page.write(workdir, record)
    return record


def _point(
    config: ConfigDict, found: Contenders, place: tuple[int, int], here: dict[str, Any], bar: tqdm
) -> Point:
    batch, length = place
    tokens = programs.random_tokens(batch, length, found.vocabulary, config.outputs, config.seed)
    same = programs.compared(found.base, found.merged, tokens)
    calls = {
        name: functools.partial(contender.call, tokens) for name, contender in found.by_name.items()
    }
    order = np.random.default_rng((config.seed, batch, length))
    seconds = trials.timed(calls, config.trials, order, bar.update)
    return Point(batch, length, seconds, same, here)


def _environment() -> dict[str, Any]:
    """The device, and the versions that decide the programs."""
    whole = environment()
    versions = {name: whole["versions"].get(name) for name in ("jax", "jaxlib", "flax")}
    return {"versions": versions, "device": whole["device"]}
