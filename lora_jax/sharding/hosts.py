"""Runs of several processes, one per host.

All processes run the same program, and only the first one writes files and prints. "Host" and
"process" mean the same here.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from lora_jax.errors import InputError

# Seconds that a process which ends early waits for the others, which are then ended too. Without an
# error all processes end together, see `finish`.
_PATIENCE = 30
MOST = 2**16  # processes of a run
_QUIET = 5.0  # seconds without a word while processes join
_HOSTS = re.compile(
    r"(?P<address>(\[[0-9a-fA-F:.]+\]|[^\s:,/\[\]]+):(?P<port>[0-9]{1,9})),"
    r"(?P<index>[0-9]{1,9})/(?P<count>[0-9]{1,9})"
)
_LOG = logging.getLogger(__name__)
_LONGEST_WAIT = 24 * 3600 * 1000  # ms, for work of one process; the wait ends if a process dies
_numbers = itertools.count()  # of barriers, each of which needs a name of its own
_Json = TypeVar("_Json")


def start(address: str, index: int | None = None, count: int | None = None) -> None:
    """Joins the processes of a run; call it before any computation.

    Args:
      address: `host:port` of the first process, or "auto" where JAX can ask the machine (TPU pods,
        Slurm, Open MPI, Kubernetes).
      index: number of this process, from 0; not needed with "auto".
      count: number of processes; not needed with "auto".

    Raises:
      ValueError: the index is not below the count, or "auto" finds no other hosts.
    """
    if address != "auto" and (index is None or count is None or not 0 <= index < count):
        raise InputError(f"process {index} of {count}: the index goes from 0 to the count less one")
    # With this service SIGTERM would not end the process but ask for a checkpoint, and the training
    # loop writes enough of them anyway.
    jax.config.update("jax_enable_preemption_service", False)
    if address == "auto":
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"'auto' found no hosts on this machine ({error}); name them: HOST:PORT,INDEX/COUNT"
            ) from error
        return
    what = f"process {index} of {count} waits for the others at {address}"
    with _told(f"{what}; each is started with --hosts={address},INDEX/{count} or the like"):
        jax.distributed.initialize(address, count, index, shutdown_timeout_seconds=_PATIENCE)


@contextmanager
def _told(text: str) -> Iterator[None]:
    """Says what a program waits for, if it does so for some seconds."""
    timer = threading.Timer(_QUIET, lambda: _LOG.warning("%s", text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def parse(text: str) -> tuple[str, int | None, int | None]:
    """The arguments of `start` from the text `auto` or `HOST:PORT,INDEX/COUNT`.

    Raises:
      ValueError: the text is neither.
    """
    if text == "auto":
        return text, None, None
    match = _HOSTS.fullmatch(text)
    if match is None:
        raise InputError(
            f"hosts {text!r} is neither 'auto' nor HOST:PORT,INDEX/COUNT, such as 10.0.0.1:9876,0/4"
        )
    port, index, count = (int(match[name]) for name in ("port", "index", "count"))
    if not 1 <= port < 2**16:
        raise InputError(f"hosts {text!r}: the port is from 1 to 65,535, got {port}")
    if not 1 <= count <= MOST:
        raise InputError(f"hosts {text!r}: the count is from 1 to {MOST:,}, got {count}")
    if index >= count:
        raise InputError(
            f"hosts {text!r}: the index goes from 0 to the count less one, {count - 1}"
        )
    return match["address"], index, count


def is_main() -> bool:
    """Whether this is the first process, which writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here, for up to a day.

    It is JAX's coordination service that waits: a collective of CPU devices gives up after 30 s.

    Args:
      name: for messages.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        wait = multihost.get_barrier_sync_fn()
        wait(key=f"{name} {next(_numbers)}", timeout_ms=_LONGEST_WAIT)


def finish() -> None:
    """Ends a program without an error: no process leaves before the others are done."""
    if jax.distributed.is_initialized():
        barrier("end")


@contextmanager
def together() -> Iterator[None]:
    """A part of a program that fails on all processes if it fails on one.

    Nothing in it may wait for the other processes.

    Raises:
      ValueError: it failed on another process.
    """
    try:
        yield
    except Exception:
        everywhere(False)
        raise
    if not everywhere(True):
        raise InputError("another process failed; its own message says why")


def from_main(function: Callable[[], _Json]) -> _Json:
    """Calls `function` on the first process alone, and returns its result on all of them.

    For reading files that a process may be writing, and for work that the others need not repeat.

    Args:
      function: returns a JSON value.

    Raises:
      Exception: on the first process, what `function` raised.
      ValueError: on the others, if `function` raised something.
    """
    if jax.process_count() == 1:
        return function()
    message: dict[str, _Json | str] = {}
    failure: Exception | None = None
    if is_main():
        try:
            message = {"value": function()}
        except Exception as error:
            failure, message = error, {"error": f"{type(error).__name__}: {error}"}
    barrier("from the first process")
    received = json.loads(_broadcast(json.dumps(message).encode()))
    if failure is not None:
        raise failure
    if "error" in received:
        raise InputError(f"the first process failed: {received['error']}")
    value: _Json = received["value"]
    return value


def everywhere(condition: bool) -> bool:
    """Whether the condition is True on every process."""
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
