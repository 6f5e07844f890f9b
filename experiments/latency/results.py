"""The record of a measurement: means and slow-downs of all contenders at all points."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.latency.contenders import BASE
from experiments.latency.trials import Point
from experiments.runs import intervals

Record = dict[str, Any]


def record(
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    contenders: Mapping[str, Mapping[str, Any]],
    base_values: int,
    points: Sequence[Point],
) -> Record:
    """What latency.json holds.

    Args:
      config: as JSON values.
      environment: versions and the device.
      contenders: descriptions by name.
      base_values: number of the base's parameters.
      points: all of the grid.

    Returns:
      Those, and for every point the contenders' `mean_ms` and `slow_down` (a share of the base's mean; None
      for the base itself), each with half the width of its 95% interval, and `median_ms`.
    """
    programs = [point.programs for point in points]
    return {
        "config": dict(config),
        "environment": dict(environment),
        "base_values": base_values,
        "contenders": {name: dict(about) for name, about in contenders.items()},
        "merged_is_base": {
            kind: all(p[f"{kind}_equal"] for p in programs) for kind in ("lowered", "compiled")
        },
        "points": [_point(point, list(contenders)) for point in points],
    }


def of_config(record: Record) -> list[str]:
    """Names of the base, of LoRA's contenders and of the config's `adapters`."""
    return [name for name, about in record["contenders"].items() if not about["bottleneck"]]


def of_figure_5(record: Record) -> dict[str, dict[int, str]]:
    """Names of the others, by method and size of the bottleneck; empty where none was timed."""
    found: dict[str, dict[int, str]] = {}
    for name, about in record["contenders"].items():
        if about["bottleneck"]:
            found.setdefault(about["method"], {})[about["bottleneck"]] = name
    return found


def _point(point: Point, names: Sequence[str]) -> Record:
    figures = {}
    for name in names:
        seconds = point.seconds[name]
        mean = intervals.mean(seconds)
        slower = (
            None if name == BASE else intervals.slow_down(seconds, point.seconds[BASE])._asdict()
        )
        figures[name] = {
            "mean_ms": {"value": 1e3 * mean.value, "half": 1e3 * mean.half},
            "median_ms": 1e3 * statistics.median(seconds),
            "slow_down": slower,
        }
    return {
        "batch": point.batch, "length": point.length, "programs": point.programs, "contenders": figures,
    }  # fmt: skip
