"""The folder of a run belongs to its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from experiments.runs.record import check_record
from lora_jax import inputs, locking, run_files, run_folder
from lora_jax.adapters import load_adapter
from lora_jax.errors import InputError
from lora_jax.files import write_json
from lora_jax.sharding import hosts

_Read = TypeVar("_Read")
MAY_CHANGE = ("mesh", "verify")  # settings with which a run may be resumed otherwise


def plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON values."""
    return run_folder.plain(config.to_dict())


def finished(workdir: Path, config: ConfigDict, *, held: bool = False) -> dict[str, Any] | None:
    """Looks into a run folder: the record of a finished run, else None (new, or to be resumed).

    What a finished run has left is checked, see `run_files.check`.

    Args:
      workdir: of the run.
      config: of the run.
      held: whether this program has locked the folder.

    Raises:
      ValueError: the folder holds a run of another config; the message names the fields. The mesh
        may be another, and whether the model is verified. Or the hosts were given different configs.
        Or a file of the run is damaged.
    """
    here = plain(config)
    first = hosts.from_main(lambda: here)
    if not hosts.everywhere(here == first):
        differences = run_folder.changes(first, here, "on the first host", "here")
        raise InputError(
            f"the hosts were started with different configs ({differences or 'see the others'})"
        )
    remedy = "Use another --workdir, or the same config to resume it"

    def read() -> dict[str, Any] | None:
        record = run_folder.finished(workdir, here, MAY_CHANGE, remedy)
        if record is not None:
            load = load_adapter if here.get("epochs") and "method" in here else None
            run_files.check(workdir, record, load, held=held)
            check_record(workdir / run_folder.RESULT, record)
        return record

    return hosts.from_main(read)


def read_or_train(
    workdir: Path,
    config: ConfigDict,
    read: Callable[[], _Read],
    train: Callable[[_Read], dict[str, Any]],
) -> dict[str, Any]:
    """The record of a run, which is read back if it is finished, else trained while the folder is locked.

    Another config, and a folder in use, are refused before data are read.

    Args:
      workdir: of the run.
      config: of the run.
      read: reads data, and refuses those of another run, see `check_inputs`.
      train: makes the record of what was read.
    """
    if (record := finished(workdir, config)) is not None:
        read()
        return record
    with locking.exclusive(workdir):
        # Another program may have finished it just now.
        record, content = finished(workdir, config, held=True), read()
        return record or train(content)


def write_record(
    workdir: Path, record: Mapping[str, Any], made: str = run_files.ADAPTER
) -> dict[str, Any]:
    """Writes result.json with digests of what the run has left, see `run_files.signed`; its content."""
    plain = run_folder.plain(record)
    signed = hosts.from_main(lambda: run_files.signed(workdir, plain, made))
    write_json(workdir / run_folder.RESULT, signed)
    return signed


def check_inputs(workdir: Path, given: inputs.Inputs) -> None:
    """Raises InputError if the run of a folder was made from other data, tokenizer or weights."""
    remedy = "Use another --workdir, or give it what that run was made from"
    hosts.from_main(lambda: inputs.check(workdir, given, remedy))


def claim(workdir: Path, config: ConfigDict, given: inputs.Inputs | None = None) -> None:
    """Makes the folder this config's, once all its input has proved good.

    Args:
      workdir: of the run.
      config: of the run.
      given: digests of what the run is made from.

    Raises:
      ValueError: another host does not see the folder.
    """
    if given is not None:
        inputs.write(
            workdir, given
        )  # first: a claimed folder always says what its run is made from
    if not run_folder.claim(workdir, plain(config)):
        raise InputError(
            f"the folder {workdir} is not the same on all hosts; --workdir must be on a file system "
            "that they share"
        )
