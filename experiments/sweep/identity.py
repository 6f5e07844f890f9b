"""What makes sweeps, points and their inputs the same: texts of their configs, which are compared."""

from __future__ import annotations

from typing import Any

from experiments.runs import folder as workdirs
from lora_jax.files import to_json
from lora_jax.run_folder import flat

_MAY_CHANGE = ("grids", "runs_per_program")  # more points, more memory: the sweep goes on
_NO_DATA = ("data.order_seed", "data.row_length", "data.max_length")  # the same data otherwise


def lasting(config: dict[str, Any]) -> dict[str, Any]:
    """A sweep's config without what may change from one start to the next."""
    kept = {name: value for name, value in config.items() if name not in _MAY_CHANGE}
    return {**kept, "run": {**kept["run"], **dict.fromkeys(workdirs.MAY_CHANGE)}}


def identity(config: dict[str, Any]) -> str:
    """What makes a run the same: not where it runs, nor that its rows have the default length."""
    data = {**config["data"], "row_length": config["data"].get("row_length") or None}
    fields = flat({**config, "data": data, **dict.fromkeys(workdirs.MAY_CHANGE)})
    return _text(fields)


def made_from(config: dict[str, Any]) -> str:
    """What of a run's config says of which data, model and start it is made.

    Runs for which it is equal must have been made from the same inputs, see `lora_jax.inputs`.
    """
    names = ("task", "dataset", "data", "init_adapter")
    fields = flat({name: config[name] for name in names if name in config})
    model = config.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return _text({key: v for key, v in fields.items() if key not in _NO_DATA} | {"model": name})


def _text(fields: dict[str, Any]) -> str:
    kept = {key: fields[key] for key in sorted(fields) if fields[key] is not None}
    return to_json(kept, indent=None)
