"""The ticket by which one follows a request, whatever it asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from lora_jax.serving.adapters import Version

_LOG = logging.getLogger(__name__)
Reason = Literal["done", "stop", "length", "cancelled", "timeout", "error", "closed"]


class QueueFullError(RuntimeError):
    """As many requests wait as may."""


class ClosedError(RuntimeError):
    """No requests are taken any more."""


class Ticket:
    """A request on its way.

    Attributes:
      version: of the adapter that it was taken for.
      reason: why it ended; None while it goes on.
      error: what went wrong, if something did.
    """

    def __init__(self, version: Version, seconds: float | None, tell: Callable[[Any], None]):
        """Begins.

        Args:
          version: see above.
          seconds: time until it is given up; None for no limit.
          tell: called with the ticket when there is something new; it must return at once.
        """
        self.version = version
        self.reason: Reason | None = None
        self.error: str | None = None
        self._until = None if seconds is None else time.monotonic() + seconds
        self._cancelled = False
        self._tell = tell

    def cancel(self) -> None:
        """Gives it up; its place is free after the next call."""
        self._cancelled = True

    def overdue(self) -> Reason | None:
        """Why it must not go on; None if it may."""
        if self._cancelled:
            return "cancelled"
        late = self._until is not None and time.monotonic() > self._until
        return "timeout" if late else None

    def end(self, reason: Reason, error: str | None = None) -> None:
        """Ends it, and tells the one who waits."""
        self.reason, self.error = reason, error
        self.notify()

    def notify(self) -> None:
        """Tells the one who waits."""
        try:
            self._tell(self)
        except Exception:  # nobody is there any more
            _LOG.debug("the one who waited is gone", exc_info=True)
            self._cancelled = True
