"""Checkpoints of a run in progress, by Orbax: atomic, and exact to the next batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The last two checkpoints of a run: training state and a JSON record of its progress."""

    def __init__(self, folder: str | os.PathLike[str]):
        # On a CPU the arrays are host memory that the next step may reuse: save before going on.
        asynchronous = jax.default_backend() != "cpu"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=asynchronous
        )
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Saves `state` (a pytree of arrays) and `record` under the step, unless it is there."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )

    def record(self) -> dict[str, Any] | None:
        """The record of the newest checkpoint, or None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
        )
        record: dict[str, Any] = restored.record
        return record

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest (state, record), or None if there is none; strict about structure and shapes.

        Args:
          like: a state of the expected structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.record

    def close(self) -> None:
        """Waits for unfinished writes."""
        self._manager.wait_until_finished()
        self._manager.close()
