"""Several processes, one per host: all run the same program, and only the first one writes files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def start(address: str, index: int | None = None, count: int | None = None) -> None:
    """Joins the processes of a run; call it before any computation.

    Args:
      address: `host:port` of the first process, or "auto" where the machine tells (TPU pods, Slurm,
        Open MPI, Kubernetes).
      index: number of this process, from 0 (not with "auto").
      count: number of processes (not with "auto").

    Raises:
      ValueError: the numbers do not fit, or "auto" finds nothing.
    """
    if address == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the machine does not tell of other hosts ({error}); name them: HOST:PORT,INDEX/COUNT"
            ) from error
        return
    if index is None or count is None or not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: the index goes from 0 to the count less one")
    jax.distributed.initialize(address, count, index)


def parse(text: str) -> tuple[str, int | None, int | None]:
    """`auto` or `HOST:PORT,INDEX/COUNT` as arguments of `start`.

    Raises:
      ValueError: it is neither.
    """
    if text == "auto":
        return text, None, None
    address, _, place = text.partition(",")
    index, _, count = place.partition("/")
    if ":" not in address or not (index.isdecimal() and count.isdecimal()):
        raise ValueError(
            f"hosts {text!r} is neither 'auto' nor HOST:PORT,INDEX/COUNT, such as 10.0.0.1:9876,0/4"
        )
    return address, int(index), int(count)


def is_main() -> bool:
    """Whether this is the first process, which writes files and talks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_main(function: Callable[[], Any]) -> Any:
    """What the first process gets from `function`, for all: a JSON value, or its error.

    Files are read so where another process may be writing, and work that others need not repeat.
    """
    if jax.process_count() == 1:
        return function()
    message: dict[str, Any] = {}
    failure: Exception | None = None
    if is_main():
        try:
            message = {"value": function()}
        except Exception as error:
            failure, message = error, {"error": f"{type(error).__name__}: {error}"}
    message = json.loads(_broadcast(json.dumps(message).encode()))
    if failure is not None:
        raise failure
    if "error" in message:
        raise ValueError(f"the first process failed: {message['error']}")
    return message["value"]


def everywhere(condition: bool) -> bool:
    """Whether it holds on every process."""
    if jax.process_count() == 1:
        return condition
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def _broadcast(content: bytes) -> bytes:
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if is_main():
        padded[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
