"""The folder of a run belongs to its settings: others are refused, and a message names the differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.files import to_json, write_json
from lora_jax.reading import read_object
from lora_jax.sharding import hosts

SETTINGS = "config.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
_PUT_BACK = "Put the file of that run back, or use another folder"
MADE_ANEW = (
    "Delete the file and give the same command again: it is made anew from what lies beside it"
)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a JSON file."""
    result: dict[str, Any] = json.loads(to_json(values))
    return result


def finished(
    folder: Path, settings: Mapping[str, Any], ignored: tuple[str, ...] = (), remedy: str = ""
) -> dict[str, Any] | None:
    """Looks into a run's folder: the record of a finished run, else None (new, or to be resumed).

    Args:
      folder: of the run; it need not exist.
      settings: of the run, JSON values.
      ignored: names of settings that may have changed.
      remedy: end of the message for another run's folder.

    Raises:
      InputError: the folder holds a run with other settings, which the message names.
      FileError, MissingFileError: its settings or its record are broken or gone.
    """
    result = folder / RESULT
    record = read_object(result, MADE_ANEW).values if result.exists() else None
    there = _settings(folder, record)
    if there is not None:
        there = {**there, **dict.fromkeys(ignored)}
        if differences := changes(there, {**settings, **dict.fromkeys(ignored)}, "there", "now"):
            raise InputError(f"{folder} holds a run with another config ({differences}). {remedy}")
    if record is not None and there is not None:
        of_record = {**record["config"], **dict.fromkeys(ignored)}
        if differences := changes(there, of_record, f"in {SETTINGS}", f"in {RESULT}"):
            raise FileError(
                result, "config", differences, f"the settings of {folder / SETTINGS}", MADE_ANEW
            )
    return record


def _settings(folder: Path, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings of the run in a folder; None if there is no run."""
    if record is not None and not isinstance(record.get("config"), dict):
        found = repr(record.get("config", "nothing"))[:60]
        raise FileError(folder / RESULT, "config", found, "an object", MADE_ANEW)
    path = folder / SETTINGS
    if path.exists():
        return read_object(path, _PUT_BACK).values
    if record is not None:
        config: dict[str, Any] = record["config"]
        return config
    if any(folder.glob(f"{CHECKPOINTS}/*")) or any(folder.glob(f"seed_*/{CHECKPOINTS}/*")):
        raise MissingFileError(
            f"{path} is missing, but {folder} has checkpoints of a run whose settings it held. {_PUT_BACK}"
        )
    return None


def setting(folder: Path, name: str) -> Any:
    """One setting of the run in a folder, a JSON value; None if there is no run."""
    path = folder / SETTINGS
    return read_object(path, _PUT_BACK).values.get(name) if path.exists() else None


def claim(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Makes the folder this run's; whether every host sees it."""
    path = folder / SETTINGS
    write_json(path, settings)
    hosts.barrier("config written")
    return hosts.everywhere(path.exists())


def changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str, here: str) -> str:
    """The fields in which two settings differ, for a message.

    Args:
      old, new: nested mappings.
      where, here: words for the place of either, such as `there` and `now`.
    """
    old, new = flat(old), flat(new)
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return "; ".join(f"{k}: {old.get(k)!r} {where}, {new.get(k)!r} {here}" for k in keys)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted names; an empty mapping inside is a value."""
    result = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
