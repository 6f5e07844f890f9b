"""What experiments share: the run folder, its config, and errors a person can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lora_jax.files import to_json, write_json
from lora_jax.sharding import hosts


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON values."""
    return json.loads(to_json(config.to_dict()))


def finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Looks into a run folder: the record of a finished run, else None (new, or to be resumed).

    Raises:
      ValueError: the folder holds a run of another config; the message names the fields. The mesh
        may be another. Or the hosts were given different configs.
    """
    own = plain(config)
    first = hosts.from_main(lambda: own)
    if not hosts.everywhere(own == first):
        raise ValueError(
            "the hosts were started with different configs "
            f"({changes(first, own, 'on the first host', 'here') or 'see the others'})"
        )
    return hosts.from_main(lambda: _finished(workdir, config))


def _finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    path = workdir / "config.json"
    if path.exists():
        other, own = json.loads(path.read_text()), plain(config)
        if found := changes({**other, "mesh": None}, {**own, "mesh": None}, "there", "now"):
            raise ValueError(
                f"{workdir} holds a run with another config ({found}). Use another --workdir, or "
                "the same config to resume it"
            )
    result = workdir / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder this config's, once all its input has proved good.

    Raises:
      ValueError: another host does not see the folder.
    """
    path = workdir / "config.json"
    write_json(path, plain(config))
    hosts.barrier("config written")
    if not hosts.everywhere(path.exists()):
        raise ValueError(
            f"the folder {workdir} is not the same on all hosts; --workdir must be on a file system "
            "that they share"
        )


def changes(old: dict[str, Any], new: dict[str, Any], where: str, here: str) -> str:
    """The fields in which two configs differ, for a message."""
    old, new = flat(old), flat(new)
    keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return "; ".join(f"{k}: {old.get(k)!r} {where}, {new.get(k)!r} {here}" for k in keys)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config with dotted names."""
    result = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
