"""What experiments share: the run folder, its config, and errors a person can read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lora_jax.sharding import hosts
from lora_jax.training.records import to_json, write_json


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON values."""
    return json.loads(to_json(config.to_dict()))


def finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Looks into a run folder: the record of a finished run, else None (new, or to be resumed).

    Raises:
      ValueError: the folder holds a run of another config; the message names the fields. The mesh
        may be another.
    """
    return hosts.from_main(lambda: _finished(workdir, config))


def _finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    path = workdir / "config.json"
    if path.exists():
        other = _flat(json.loads(path.read_text()))
        flat = _flat(plain(config))
        both = sorted(k for k in flat.keys() | other.keys() if not k.startswith("mesh."))
        keys = [k for k in both if flat.get(k) != other.get(k)]
        if keys:
            changes = "; ".join(f"{k}: {other.get(k)!r} there, {flat.get(k)!r} now" for k in keys)
            raise ValueError(
                f"{workdir} holds a run with another config ({changes}). Use another --workdir, or "
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


def hosts_flag() -> flags.FlagHolder[str]:
    """Defines `--hosts`, see `join_hosts`."""
    return flags.DEFINE_string(
        "hosts", "", "Several hosts: 'auto' (TPU pods, Slurm, MPI), or HOST:PORT,INDEX/COUNT."
    )


def join_hosts(text: str) -> None:
    """Joins the other hosts of a run if there are any."""
    if text:
        hosts.start(*hosts.parse(text))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


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
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("LORA_JAX_DEBUG"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")
