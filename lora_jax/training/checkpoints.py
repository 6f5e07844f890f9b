"""Checkpoints of a run in progress, by Orbax: atomic, and exact to the next batch.

Orbax reads many a damaged file without a word. So each checkpoint gets a file with digests of all others,
and one whose files are not as they were written is moved aside for the newest whole one before it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lora_jax.digests import of_file
from lora_jax.errors import InputError
from lora_jax.files import check_writable, set_aside, to_json, write_bytes
from lora_jax.inputs import KEY, Inputs
from lora_jax.reading import named, read_json, read_object
from lora_jax.sharding.hosts import from_main, together

_DIGESTS = "digests.json"
_METADATA = "_CHECKPOINT_METADATA"
_FULL = ("No space left on device", "Disk quota exceeded", "RESOURCE_EXHAUSTED", "File too large")
_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The last two checkpoints of a run: training state and a JSON record of its progress."""

    def __init__(self, folder: str | os.PathLike[str], inputs: Inputs | None = None):
        """Opens the folder, and moves damaged checkpoints aside.

        Args:
          folder: of the checkpoints.
          inputs: what the run is made from: every record says it, and `inputs.check` compares it.

        Raises:
          InputError: there are checkpoints, but none of them is whole.
          OSError: the folder cannot be made or read.
        """
        # On a CPU the arrays are host memory that the next step may reuse: save before going on.
        self._asynchronous = jax.default_backend() != "cpu"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=self._asynchronous
        )
        self._folder = Path(folder).absolute()
        self._inputs = dict(inputs or {})
        # Before Orbax, which reads metadata of all of them, and fails if those of one are damaged.
        from_main(lambda: _move_damaged(self._folder))
        with _disk_errors(self._folder):
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Saves `state` (a pytree of arrays) and `record` under the step, unless it is there.

        Raises:
          OSError: the disk is full, or the like; it names the folder.
          FolderInUseError: another program has taken the run's folder over.
        """
        if step in self._manager.all_steps():
            return
        if self._inputs:
            record = {**record, KEY: self._inputs}
        with together():
            check_writable(self._folder)
        with _disk_errors(self._folder):
            if self._asynchronous:
                self._sign()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
            )
            if not self._asynchronous:
                self._sign()

    def record(self) -> dict[str, Any] | None:
        """The record of the newest checkpoint, or None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
        )
        return _without_inputs(restored.record)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest (state, record), or None if there is none; strict about structure and shapes.

        Args:
          like: a state of the expected structure.

        Raises:
          InputError: the checkpoint has another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._folder / str(step)} is a checkpoint of another model, method or optimizer: {error}\n"
                "Resume with those of that run, or train in another folder"
            ) from error
        return restored.state, _without_inputs(restored.record)

    def close(self) -> None:
        """Waits for unfinished writes."""
        with _disk_errors(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()
        if self._asynchronous:
            with contextlib.suppress(OSError, InputError):  # without digests it is read to check it
                self._sign()

    def _sign(self) -> None:
        """Writes the digests of finished checkpoints that lack them."""
        if self._asynchronous:
            self._manager.wait_until_finished()
        for step in self._manager.all_steps():
            folder = self._folder / str(step)
            if folder.is_dir() and not (folder / _DIGESTS).exists():
                digests = {
                    path.relative_to(folder).as_posix(): of_file(path) for path in _files(folder)
                }
                write_bytes(folder / _DIGESTS, to_json(digests).encode())


def _without_inputs(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != KEY}


def _move_damaged(folder: Path) -> None:
    """Moves damaged checkpoints aside and tells what the run goes on from; raises if none is whole."""
    steps = [
        int(path.name) for path in folder.glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name)
    ]
    damaged: dict[int, str] = {}
    newest: int | None = None
    for step in sorted(steps, reverse=True):
        why = _damage(folder / str(step), only_metadata=newest is not None)
        if why is not None:
            damaged[step] = why
        elif newest is None:
            newest = step
    if damaged and newest is None:
        reasons = "; ".join(f"{step}: {why}" for step, why in damaged.items())
        raise InputError(
            f"{folder}: no checkpoint is whole ({reasons}). Put them back from a copy, or delete the folder "
            "to train this run from its start"
        )
    for step, why in damaged.items():
        kept = set_aside(folder / str(step), _beside(folder))
        _LOG.warning(
            "%s: checkpoint %d is damaged (%s) and kept as %s; going on from checkpoint %d",
            folder, step, why, kept, newest,
        )  # fmt: skip


def _beside(folder: Path) -> Path:
    """Where damaged checkpoints go: Orbax would take them for its own."""
    return folder.with_name(f"{folder.name}_damaged")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _damage(folder: Path, only_metadata: bool) -> str | None:
    """What is wrong with a checkpoint; None if it is whole.

    Args:
      folder: of the checkpoint.
      only_metadata: whether, if it has no digests, only what Orbax reads of every checkpoint counts.
    """
    path = folder / _DIGESTS
    if not path.exists():
        return _unreadable(folder, only_metadata)
    try:
        digests = read_object(path).values
        for name, expected in digests.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if of_file(folder / name) != expected:
                return f"{name} is not as it was written"
    except (InputError, OSError) as error:
        return str(error)
    return None


def _unreadable(folder: Path, only_metadata: bool) -> str | None:
    """What is wrong with a checkpoint without digests: one of an earlier version, or not signed yet."""
    try:
        if (path := folder / _METADATA).exists():
            read_object(path)
        if only_metadata or jax.process_count() > 1:  # Orbax's readers would wait for other hosts
            return None
        read_object(folder / "record" / "metadata")
        for path in (folder / "state" / "array_metadatas").glob("*"):
            read_json(path)
        handler = ocp.PyTreeCheckpointHandler()
        tree = handler.metadata(folder / "state").tree
        if not tree:
            return "state has no arrays"
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        handler.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=arguments))
    except Exception as error:  # Orbax and TensorStore raise many kinds
        return " ".join(str(error).split())[:200]
    return None


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full disk is an OSError that names the folder, in whatever Orbax wraps it."""
    try:
        yield
    except OSError as error:
        raise named(error, folder) from error
    except InputError:
        raise
    except Exception as error:
        if any(text in str(error) for text in _FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
