"""Times the contenders at the points of a grid, and keeps every trial in a file.

A point's trials are one line of trials.jsonl, written when all of them are done; a command that was killed
goes on with the next point.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax import json_lines, run_folder
from lora_jax.errors import InputError

TRIALS = "trials.jsonl"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Point:
    """The trials of one batch size and length.

    Attributes:
      batch: rows.
      length: tokens of a row.
      seconds: of every round, by name of the contender.
      programs: whether base and merged are one program, see `programs.compared`.
      environment: versions and the device.
    """

    batch: int
    length: int
    seconds: dict[str, list[float]]
    programs: dict[str, Any]
    environment: dict[str, Any]


def timed(
    calls: Mapping[str, Callable[[], object]],
    trials: int,
    order: np.random.Generator,
    tick: Callable[[], object],
) -> dict[str, list[float]]:
    """Times the calls in rounds, each call once a round, after one untimed call of each.

    The order is another one in every round, so that none always follows the same other.

    Args:
      calls: by name; what they return is waited for (`jax.block_until_ready`).
      trials: number of rounds.
      order: draws the order of every round.
      tick: called after every round.

    Returns:
      Seconds of every round by name.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(trials):
        for index in order.permutation(len(names)):
            call = calls[names[index]]
            begin = time.perf_counter()
            jax.block_until_ready(call())
            seconds[names[index]].append(time.perf_counter() - begin)
        tick()
    return seconds


def read(path: Path, grid: Sequence[tuple[int, int]], trials: int) -> dict[tuple[int, int], Point]:
    """The points of a grid that are in a file; one with damaged lines is kept under another name.

    Args:
      path: of the file; it need not exist.
      grid: batch sizes and lengths.
      trials: number of rounds of a point.

    Raises:
      FileError, OSError: it cannot be read.
    """
    values = json_lines.mended(
        path,
        lambda value: _is_point(value, trials) and (value["batch"], value["length"]) in grid,
        "their points are timed again",
    )
    return {(value["batch"], value["length"]): Point(**value) for value in values}


def _is_point(value: Mapping[str, Any], trials: int) -> bool:
    names = {field.name for field in dataclasses.fields(Point)}
    if value.keys() != names or not isinstance(value["seconds"], dict):
        return False
    return bool(value["seconds"]) and all(
        isinstance(rounds, list) and len(rounds) == trials and all(isinstance(s, float) for s in rounds)
        for rounds in value["seconds"].values()
    )  # fmt: skip


def check_environment(points: Mapping[Any, Point], here: Mapping[str, Any], workdir: Path) -> None:
    """Raises InputError if points were timed on another device, or by another version of JAX."""
    for point in points.values():
        if point.environment != here:
            raise InputError(
                f"{workdir} has trials of another machine or version of JAX ("
                f"{run_folder.changes(point.environment, here, 'there', 'now')}), whose times cannot stand "
                "in one table with those of this one; use another --workdir"
            )


def append(path: Path, point: Point) -> None:
    """Adds a point to the file."""
    with json_lines.Appender(path) as file:
        file.write(dataclasses.asdict(point))
