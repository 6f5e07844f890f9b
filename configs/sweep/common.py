"""What all sweep configs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def sweep_config(
    experiment: str,
    run: ConfigDict,
    grids: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """All fields of a sweep.

    Args:
      experiment: `glue`, `nlg` or `tune`.
      run: config of one run, whose fields a grid replaces.
      grids: by a name of your choice, for the command line; see `experiments.sweep.points.points`.
      labels: long values, whole methods too, by the short name that they have in names of points.
    """
    run.seeds = run.seeds[:1]
    run.mesh.run, run.mesh.data = -1, 1  # runs exchange nothing: spread them over the devices
    return ConfigDict(
        {
            "experiment": experiment,
            "run": run,
            "grids": {name: dict(grid) for name, grid in grids.items()},
            "labels": tuple((labels or {}).items()),  # pairs (label, value)
            "runs_per_program": 0,  # 0: as many as fit the devices' memory, measured
        }
    )
