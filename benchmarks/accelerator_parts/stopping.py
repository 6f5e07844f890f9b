"""Signals that end the script, as an exception: what was measured is written first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stopped(BaseException):
    """The process was told to end."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While it lasts, SIGTERM, SIGINT and SIGHUP raise `Stopped`, so that what was measured is written."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
