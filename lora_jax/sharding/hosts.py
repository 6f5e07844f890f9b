"""Several processes, one per host: all run the same program, and only the first one writes files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

# Seconds for which a process that ends waits for the others; then they are ended too. Without an
# error all end together, see `finish`.
_PATIENCE = 30
_LONGEST_WAIT = 24 * 3600 * 1000  # ms, for work of one process; the death of a process ends it
_numbers = itertools.count()


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
    if address != "auto" and (index is None or count is None or not 0 <= index < count):
        raise ValueError(f"process {index} of {count}: the index goes from 0 to the count less one")
    # With that service SIGTERM would ask for a checkpoint, which our loop writes often enough, and
    # not end the process.
    jax.config.update("jax_enable_preemption_service", False)
    if address == "auto":
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the machine does not tell of other hosts ({error}); name them: HOST:PORT,INDEX/COUNT"
            ) from error
        return
    jax.distributed.initialize(address, count, index, shutdown_timeout_seconds=_PATIENCE)


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
    """Waits until every process is here, however long the others work.

    The coordination service waits: a collective of CPU devices gives up after 30 seconds.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        wait = multihost.get_barrier_sync_fn()
        wait(key=f"{name} {next(_numbers)}", timeout_ms=_LONGEST_WAIT)


def finish() -> None:
    """The end of a program that went well: no process leaves before the others are done."""
    if jax.distributed.is_initialized():
        barrier("end")


@contextmanager
def together() -> Iterator[None]:
    """A part that can fail on one process only; then all fail. Nothing in it may be collective."""
    try:
        yield
    except Exception:
        everywhere(False)
        raise
    if not everywhere(True):
        raise ValueError("another process failed; its own message says why")


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
    barrier("from the first process")
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

    barrier("everywhere")
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def _broadcast(content: bytes) -> bytes:
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if is_main():
        padded[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
