"""The folder of a run belongs to its config."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from experiments.runs.record import MADE_ANEW, check_record
from lora_jax import files, inputs, locking, reading, run_files, run_folder
from lora_jax.adapters import load_adapter
from lora_jax.errors import InputError
from lora_jax.files import write_json
from lora_jax.sharding import hosts

SWEEP = "sweep.json"  # of the folder of a sweep
EVALUATION = "evaluation.json"  # of that of an evaluation
_Read = TypeVar("_Read")
MAY_CHANGE = ("mesh", "verify")  # settings with which a run may be resumed otherwise


def check_place(workdir: Path, *, of_sweep: bool = False) -> None:
    """Raises InputError for a folder that no run can have: a sweep's, or inside that of another run.

    A point of a sweep may be started alone.

    Args:
      workdir: of the run.
      of_sweep: whether it is that of a sweep.
    """
    hosts.from_main(lambda: _check_place(workdir, of_sweep))


def _check_place(workdir: Path, of_sweep: bool) -> None:
    files.check_folder(workdir)
    if (workdir / run_folder.SETTINGS).exists() and not of_sweep:  # its own
        return
    place = Path(os.path.realpath(workdir))
    for folder in (place, *place.parents):
        if folder == place and of_sweep and (folder / SWEEP).is_file():  # its own
            return
        what = "a sweep" if (folder / SWEEP).is_file() else "a run" if is_run(folder) else ""
        if what:
            lies = f"is {folder}" if folder == place else f"lies in {folder}"
            raise InputError(
                f"{workdir} {lies}, the folder of {what}, which holds nothing but its own; use another "
                "--workdir"
            )


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or of an evaluation, by its config.json."""
    file = folder / run_folder.SETTINGS
    try:
        names = reading.read_object(file).values.keys() if file.is_file() else set[str]()
    except (InputError, OSError):  # of another program
        return False
    kinds = (
        {"seeds", "method"}, {"seed", "tokenizer"}, {"seeds", "shots"}, {"seed", "caption_dropout"},
    )  # fmt: skip
    return any(kind <= names for kind in kinds)


@contextlib.contextmanager
def evaluating(workdir: Path, config: ConfigDict) -> Iterator[Callable[[inputs.Inputs], None]]:
    """The folder of an evaluation: locked, and claimed by its config as that of a run.

    Args:
      workdir: of the evaluation; it may hold an earlier one of the same config and inputs.
      config: of the evaluation.

    Yields:
      What claims the folder, to be called with the inputs once all input has proved good.

    Raises:
      ValueError: the folder holds a run, or another evaluation.
    """
    check_place(workdir)
    _check_evaluation(workdir, config)
    with locking.exclusive(workdir):
        _check_evaluation(workdir, config)

        def claimed(given: inputs.Inputs) -> None:
            check_inputs(workdir, given)
            claim(workdir, config, given)

        yield claimed


def _check_evaluation(workdir: Path, config: ConfigDict) -> None:
    finished(workdir, config)
    path = workdir / EVALUATION

    def there() -> dict[str, Any]:  # what earlier versions have left has no config.json beside
        record = reading.read_object(path, MADE_ANEW) if path.exists() else None
        none: dict[str, Any] = {}
        return none if record is None else record.get("config", dict, none)

    old = {**hosts.from_main(there), **dict.fromkeys(MAY_CHANGE)}
    here = {**plain(config), **dict.fromkeys(MAY_CHANGE)}
    if len(old) > len(MAY_CHANGE) and (found := run_folder.changes(old, here, "there", "now")):
        raise InputError(
            f"{workdir} holds an evaluation with another config ({found}). Use another --workdir"
        )


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
    check_place(workdir)
    for seed in config.get("seeds", ()):
        for name in ("checkpoints", "tensorboard", run_files.ADAPTER):
            files.check_folder(workdir / f"seed_{seed}" / name)
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
