"""What all sweep configs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def sweep_config(
    experiment: str,
    run: ConfigDict,
    grids: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
) -> ConfigDict:
    """All fields of a sweep.

    Args:
      experiment: `glue` or `nlg`.
      run: config of one run; a grid replaces fields of it.
      labels: short names of long values, by label.
      grids: by a name of your choice, for the command line; see `experiments.sweep_points.points`.
    """
    run.seeds = run.seeds[:1]
    run.mesh.run, run.mesh.data = -1, 1  # runs send nothing to each other; fill devices with them
    return ConfigDict(
        {
            "experiment": experiment,
            "run": run,
            "grids": {name: dict(grid) for name, grid in grids.items()},
            "labels": tuple((labels or {}).items()),  # (label, value) pairs, for names of points
            "runs_per_program": 0,  # 0: as many as fit the devices' memory, measured
        }
    )
