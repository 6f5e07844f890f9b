"""The config of an earlier run, read from its folder: to repeat the run, alone or changed.

    python -m experiments.glue --config=configs/record.py:FOLDER --workdir=OTHER_FOLDER
    python -m experiments.glue --config=configs/record.py:runs/sweep/points/rank=8,seed=0 --workdir=alone

FOLDER is the --workdir of a run of experiments.glue, .nlg or .tune (start the same command again), or
the folder of one point of a sweep, which alone gives what it gave in the sweep. Every field can be set on
the command line: --config.seeds="(0,1)" --config.data.source=FOLDER. The mesh is the default one, all devices
as copies of the model, and not the recorded one, since the machine may be another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.training import order_fields, training_fields
from lora_jax.reading import read_object


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config recorded in a folder.

    Raises:
      ValueError: no folder is named, or it is not that of a run; the message names file and remedy.
    """
    values = _values(Path(arg)) if arg else {}
    if not values:
        raise ValueError(f"give the folder of a run: {_EXAMPLE}")
    # Older records lack newer fields, and a placeholder was written as None: take the fields of today.
    unset = {key: value for key, value in order_fields().items() if values["data"].get(key) is None}
    values["data"] |= unset
    return ConfigDict({**training_fields(), **values, "mesh": training_fields()["mesh"]})


_EXAMPLE = "--config=configs/record.py:FOLDER, where FOLDER was its --workdir"


def _values(folder: Path) -> dict[str, Any]:
    """config.json of a run's folder."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "sweep.json").is_file():
            known = sorted(path.parent.name for path in folder.glob("points/*/config.json"))
            raise ValueError(
                f"{folder} is the folder of a sweep ({folder / 'sweep.json'}), not of a run; name "
                f"one of its points, {folder / 'points' / (known[0] if known else 'NAME')}"
            )
        raise ValueError(f"there is no {file}; give the folder of a run: {_EXAMPLE}")
    record = read_object(file, "Give the folder of another run")
    values = record.values
    kinds = ("task", "dataset", "samples")  # a field of each experiment's
    named = any(kind in values for kind in kinds)
    if not named or not all(name in values for name in ("method", "seeds", "data", "epochs")):
        raise ValueError(
            f"{file} is not the config of a run of experiments.glue, .nlg or .tune; give the "
            f"folder of one: {_EXAMPLE}"
        )
    for name in ("data", "method"):
        record.record(name)
    return {key: tuples(value) for key, value in values.items()}


def tuples(value: Any) -> Any:
    """JSON values with tuples for lists, as configs have them: only tuples can be set in a command."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value
