"""Whether a run that is resumed or read back still has what it had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.adapters import DESCRIPTION, load_adapter
from lora_jax.errors import InputError
from lora_jax.files import recover_folder
from lora_jax.reading import Record, read_object
from lora_jax.run_files import ADAPTER
from lora_jax.run_folder import CHECKPOINTS, MADE_ANEW
from lora_jax.sharding.hosts import from_main
from lora_jax.training.progress import TIMES, Progress

_COUNTS = ("step", "examples", "tokens", "slots", "flops", "diverged")
_LATER = {"waiting_seconds"}  # which records of earlier versions lack
_MOST = 2**63


def check_best(folder: Path, progress: Progress, checkpoints: Path | None = None) -> None:
    """Checks that a run that is resumed still has the adapter of its best epoch so far.

    A newer adapter is right, too: the run was killed between it and the next checkpoint, and makes it again.

    Args:
      folder: of the run, with `adapter` in it.
      progress: of the checkpoint that it goes on from.
      checkpoints: their folder; if not given, `checkpoints` in that of the run.

    Raises:
      InputError: the adapter is gone, broken or of an earlier epoch.
    """
    if progress.best:
        places = folder / ADAPTER, checkpoints or folder / CHECKPOINTS
        from_main(lambda: _check_best(*places, progress.best))


def _check_best(adapter: Path, checkpoints: Path, best: int) -> None:
    recover_folder(adapter)
    try:
        read_object(adapter / DESCRIPTION)
        epoch = load_adapter(adapter).notes.get("epoch")
        found = "" if type(epoch) is int and epoch >= best else f"it is of epoch {epoch!r}"
    except InputError as error:
        found = str(error)
    if found:
        raise InputError(
            f"{adapter} should hold the adapter of epoch {best}, the best one before the checkpoint from "
            f"which this run goes on: {found}. Put it back from a copy, or delete "
            f"{checkpoints} to train this run from its start"
        )


def check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Checks the progress in a run record, which `Progress.from_record` takes.

    Args:
      path: of the file, for messages.
      record: its content.

    Raises:
      FileError: a value is missing or of another type.
    """
    values = Record(path, record, remedy=MADE_ANEW)
    for name in _COUNTS:
        values.integer(name, 0, _MOST)
    for name in TIMES:
        if name in record or name not in _LATER:
            values.get(name, float)
    history = values.get("history", list)
    for number, metrics in enumerate(history):
        if not isinstance(metrics, dict) or not all(map(_is_score, metrics.values())):
            raise values.error(f"history[{number}]", repr(metrics)[:60], "an object of numbers")
    values.integer("best_epoch", 0 if record["diverged"] else 1, len(history))


def _is_score(value: object) -> bool:
    """Whether a value is a number, or null, which stands for NaN and infinity."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
