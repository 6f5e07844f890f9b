"""A thread that owns the device: requests wait for it in a queue, and it answers them batch by batch."""

from __future__ import annotations

import abc
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

from lora_jax.checks import Integer, integer
from lora_jax.pool.pool import AdapterPool
from lora_jax.serving.adapters import Adapters
from lora_jax.serving.tickets import ClosedError, QueueFullError, Reason, Ticket

_LOG = logging.getLogger(__name__)
_Ticket = TypeVar("_Ticket", bound=Ticket)


@dataclasses.dataclass
class Counts:
    """What was done so far.

    Attributes:
      requests: that were taken.
      finished: tickets that ended, by reason.
    """

    requests: int = 0
    finished: dict[str, int] = dataclasses.field(default_factory=dict)


class Worker(Adapters, abc.ABC, Generic[_Ticket]):
    """Base of what answers requests for the adapters of a pool, in the order in which they come.

    Subclasses say what a step is: which of those that wait run next, and what the device does for them.

    Attributes:
      counts: what it has done so far.
      most_waiting: requests that may wait.
    """

    counts: Counts

    def __init__(self, pool: AdapterPool[Any], waiting: Integer, window: float = 0.0):
        """Prepares; `_start_thread` begins.

        Args:
          pool: see `Adapters`.
          waiting: requests that may wait.
          window: seconds that an idle thread waits for others to come after the first one.
        """
        super().__init__(pool)
        self.most_waiting = integer("waiting", waiting)
        self._window = window
        self._queue: deque[_Ticket] = deque()
        self._running: list[_Ticket | None] = []
        self._closing: Literal["", "after", "now"] = ""
        self._work = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="lora_jax serving", daemon=True)

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are being answered, and that wait."""
        with self._lock:
            return sum(ticket is not None for ticket in self._running), len(self._queue)

    @abc.abstractmethod
    def _step(self) -> None:
        """Answers some of those that wait, or goes on with those that run; it is called without the lock."""

    def _reset(self) -> None:
        """Makes what a step that failed may have left half done."""

    def _take(self, tickets: Sequence[_Ticket]) -> None:
        """Lets the tickets of one request into the queue, all of them or none.

        Raises:
          QueueFullError: too many wait.
          ClosedError: it is closing.
        """
        with self._work:
            if self._closing:
                raise ClosedError("the server is shutting down")
            if len(self._queue) + len(tickets) > self.most_waiting:
                raise QueueFullError(f"{len(self._queue)} requests are waiting; try again later")
            for ticket in tickets:
                ticket.version.uses += 1
            self._queue.extend(tickets)
            self.counts.requests += 1
            self._work.notify()

    def close(self, *, now: bool = False, seconds: float | None = None) -> None:
        """Ends the thread: after the requests that it has, or at once.

        Args:
          now: whether requests are given up.
          seconds: how long to wait for those that run; then they are given up.
        """
        with self._work:
            self._closing = "now" if now else self._closing or "after"
            self._work.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._work:
                self._closing = "now"
                self._work.notify()
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                idle = False
                while not (self._closing or self._queue or any(self._running)):
                    idle = self._work.wait()
                if idle and self._window:
                    self._work.wait_for(lambda: bool(self._closing), self._window)
                if self._closing == "now":
                    self._end_all([*self._queue, *self._running], "closed")
                    self._queue.clear()
                if self._closing and not (self._queue or any(self._running)):
                    return
            try:
                self._step()
            except Exception as error:  # of one batch: the next ones go on
                _LOG.exception("a batch failed")
                with self._lock:
                    self._end_all(self._running, "error", str(error))
                    self._reset()

    def _end_all(
        self, tickets: Sequence[_Ticket | None], reason: Reason, error: str | None = None
    ) -> None:
        """Ends tickets, and all that run are among them."""
        for ticket in tickets:
            if ticket is not None:
                self._end(ticket, reason, error)
        self._running = [None] * len(self._running)

    def _end(self, ticket: _Ticket, reason: Reason, error: str | None = None) -> None:
        """Ends a ticket that has not ended by itself, and lets its adapter go; once for every ticket."""
        if ticket.reason is None:
            ticket.end(reason, error)
        reason = ticket.reason or reason
        self.counts.finished[reason] = self.counts.finished.get(reason, 0) + 1
        self._release(ticket.version)

    def _drop_overdue(self) -> None:
        """Ends those that wait in vain."""
        late = {ticket: reason for ticket in self._queue if (reason := ticket.overdue())}
        if late:
            self._queue = deque(ticket for ticket in self._queue if ticket not in late)
        for ticket, reason in late.items():
            self._end(ticket, reason)
