"""What experiments share: the run folder, its config, and errors a person can read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from lora_jax.adapters import write_bytes
from lora_jax.sharding import hosts
from lora_jax.sharding.mesh import AXES
from lora_jax.training.records import to_json, write_json


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


def say(text: object) -> None:
    """Prints, on the first host only."""
    if hosts.is_main():
        print(text)


def parse_flags(arguments: list[str]) -> list[str]:
    """The `flags_parser` of `app.run`: a config field that does not exist is a readable error."""
    try:
        return app.parse_flags_with_usage(arguments)
    except AttributeError as error:  # from ml_collections, which names the field only
        named = re.search(r"\w+", str(error))  # in quotes of several kinds, with advice behind
        field = named[0] if named else str(error)
        given = [a for a in arguments if f".{field}=" in a or a.endswith(f".{field}")]
        mesh = any(".mesh." in a for a in given)
        known = (
            f"a mesh has {', '.join(AXES)}" if mesh else "see the file of --config and its imports"
        )
        sys.exit(
            f"error: {given[0] if given else field}: no field {field!r} in the config; {known}"
        )


def hosts_flag() -> flags.FlagHolder[str]:
    """Defines `--hosts`, see `join_hosts`."""
    return flags.DEFINE_string(
        "hosts", "", "Several hosts: 'auto' (TPU pods, Slurm, MPI), or HOST:PORT,INDEX/COUNT."
    )


def join_hosts(text: str) -> None:
    """Joins the other hosts of a run if there are any."""
    if text:
        hosts.start(*hosts.parse(text))


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


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; makes its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def copy_folder(source: Path, target: Path) -> None:
    """Replaces `target` by a copy of `source`, written beside and renamed; on the first host."""
    if not hosts.is_main():
        return
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Turns the errors of bad input into a message and exit status 1; LORA_JAX_DEBUG=1 traces them."""
    try:
        yield
        hosts.finish()
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("LORA_JAX_DEBUG"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")
