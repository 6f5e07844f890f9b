"""Continuous batching: a thread that lets requests into free rows of a running batch and hands out tokens."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np

from lora_jax.adapter_files import Adapter
from lora_jax.adapters import load_adapter
from lora_jax.checks import Integer, integer
from lora_jax.errors import InputError
from lora_jax.pool.pool import AdapterPool
from lora_jax.serving.choosing import Choice
from lora_jax.serving.requests import ClosedError, QueueFullError, Reason, Request, Ticket
from lora_jax.serving.rows import Programs

_LOG = logging.getLogger(__name__)
_PROMPT_STEP = (
    32  # prompts are padded to 32, 64, 128, ... tokens, so that few programs are compiled
)


@dataclasses.dataclass
class Counts:
    """What an engine has done.

    Attributes:
      requests: that were taken.
      finished: requests that ended, by reason.
      prompt_tokens: that were read.
      tokens: that were handed out.
      calls: of the program that continues all rows.
      rows: in use in those calls, summed.
    """

    requests: int = 0
    finished: dict[str, int] = dataclasses.field(default_factory=dict)
    prompt_tokens: int = 0
    tokens: int = 0
    calls: int = 0
    rows: int = 0


class UnknownAdapterError(InputError):
    """There is no adapter of this name."""


class Engine:
    """Answers requests for the adapters of a pool, in the order in which they come.

        engine = Engine(pool)
        ticket = engine.submit(Request(prompt, "e2e"), tell)    # `tell` is called with every piece

    One thread owns the device: it fills free rows with waiting requests, continues all rows by a few tokens,
    and tells the owners of the tickets. Adapters are added and removed through it while it runs. A request
    keeps the adapter that it began with, also if another one gets its name.

    Attributes:
      pool: of the base and its adapters; nobody else may change it.
      counts: what it has done so far.
    """

    def __init__(
        self,
        pool: AdapterPool,
        *,
        rows: Integer = 8,
        room: Integer = 1024,
        steps: Integer = 4,
        waiting: Integer = 256,
    ):
        """Starts the thread.

        Args:
          pool: with slots for as many adapters as there are rows.
          rows: requests that are answered at once.
          room: tokens of the longest prompt with its continuation.
          steps: tokens by which all rows grow in one call; requests enter and leave between calls.
          waiting: requests that may wait.

        Raises:
          InputError: a number is out of range, or the pool is too small.
        """
        self.pool, self.counts = pool, Counts()
        self._count = integer("rows", rows, most=4096)
        self._steps = integer("steps", steps, most=16)
        longest: int = pool.base.config.max_length  # type: ignore[attr-defined]
        self.room = min(integer("room", room), longest)
        self._most_waiting = integer("waiting", waiting)
        if pool.capacity < self._count:
            raise InputError(
                f"a batch of {self._count} rows can need as many adapters at once, and the pool holds "
                f"{pool.capacity}; make it with capacity={self._count}"
            )
        self._programs = Programs(pool, self._count, self.room, self._steps)
        self._state = self._programs.empty()
        self._running: list[Ticket | None] = [None] * self._count
        self._versions: list[str | None] = [
            None
        ] * self._count  # names in the pool of running requests
        self._queue: deque[Ticket] = deque()
        self._names: dict[str, str] = {}  # name in the pool of every name that requests use
        self._number = 0
        self._closing: Literal["", "after", "now"] = ""
        self._lock = threading.RLock()  # of all of the above and the pool
        self._work = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="lora_jax engine", daemon=True)
        self._thread.start()

    @property
    def names(self) -> list[str]:
        """The names that requests may use."""
        with self._lock:
            return list(self._names)

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are being answered, and that wait."""
        with self._lock:
            return sum(ticket is not None for ticket in self._running), len(self._queue)

    @property
    def spare(self) -> int:
        """Tokens of the room that prompts and continuations cannot have: a call may go over their end."""
        return self._steps

    def submit(self, request: Request, tell: Callable[[Ticket], None]) -> Ticket:
        """Takes a request.

        Args:
          request: for an adapter that there is.
          tell: called by the engine's thread with every piece, and at the end; it must return at once.

        Raises:
          InputError: the adapter is unknown, or there is no room for the prompt and its continuation.
          QueueFullError: too many requests wait.
          ClosedError: the engine is closing.
        """
        if len(request.prompt) + request.max_tokens > self.room - self.spare:
            raise InputError(
                f"a prompt of {len(request.prompt):,} tokens and {request.max_tokens:,} new ones do not fit "
                f"the {self.room - self.spare:,} tokens of a conversation here"
            )
        vocabulary: int = self.pool.base.config.vocab_size  # type: ignore[attr-defined]
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocabulary:
            odd = next(token for token in request.prompt if not 0 <= token < vocabulary)
            raise InputError(f"the prompt has the token {odd}, and the model knows {vocabulary:,}")
        with self._work:
            self._check_name(request.adapter)
            if self._closing:
                raise ClosedError("the server is shutting down")
            if len(self._queue) >= self._most_waiting:
                raise QueueFullError(f"{len(self._queue)} requests are waiting; try again later")
            ticket = Ticket(request, tell)
            self._queue.append(ticket)
            self.counts.requests += 1
            self._work.notify()
            return ticket

    def _check_name(self, name: str | None) -> None:
        if name is not None and name not in self._names:
            raise UnknownAdapterError(f"there is no adapter {name!r}")

    def add(
        self,
        name: str,
        adapter: Adapter | str | os.PathLike[str],
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Adds an adapter, see `AdapterPool.add`; one of this name that is there already gives way.

        Raises:
          InputError: as `AdapterPool.add`; then nothing has changed.
        """
        folder = folder if isinstance(adapter, Adapter) else adapter
        loaded = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
        # Before the lock is taken: it may take a while.
        self.pool.check(loaded, f"adapter {name!r}")
        with self._lock:
            self._number += 1
            version = f"{name} #{self._number}"
            self.pool.add(version, loaded, folder)
            old, self._names[name] = self._names.get(name), version
            self._retire(old)

    def remove(self, name: str) -> None:
        """Takes an adapter out; requests that run with it end, those that wait for it are refused.

        Raises:
          InputError: there is none.
        """
        with self._lock:
            self._check_name(name)
            self._retire(self._names.pop(name))

    def _retire(self, version: str | None) -> None:
        """Takes an adapter out of the pool as soon as no row uses it."""
        if version is not None and version not in self._versions:
            self.pool.remove(version)

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
                while not (self._closing or self._queue or any(self._running)):
                    self._work.wait()
                if self._closing == "now":
                    self._give_up()
                if self._closing and not (self._queue or any(self._running)):
                    return
            try:
                with self._lock:
                    self._leave()
                    begun = self._admit()
                for row, ticket in begun:
                    self._start(row, ticket)
                self._continue()
            except Exception as error:  # of one batch: the next ones go on
                _LOG.exception("a batch failed")
                with self._lock:
                    self._fail(str(error))

    def _give_up(self) -> None:
        for ticket in [*self._queue, *self._running]:
            if ticket is not None:
                self._end(ticket, "closed")
        self._queue.clear()
        for row in range(self._count):
            self._free(row)

    def _fail(self, message: str) -> None:
        """Ends what runs, with a new state: the old one may be half consumed."""
        for row, ticket in enumerate(self._running):
            if ticket is not None:
                self._end(ticket, "error", message)
                self._free(row)
        self._state = self._programs.empty()

    def _end(self, ticket: Ticket, reason: Reason, error: str | None = None) -> None:
        if ticket.reason is None:
            ticket.end(reason, error)
        self.counts.finished[ticket.reason or reason] = (
            self.counts.finished.get(ticket.reason or reason, 0) + 1
        )

    def _free(self, row: int) -> None:
        version, self._versions[row] = self._versions[row], None
        self._running[row] = None
        if version is not None and version not in self._names.values():
            self._retire(version)

    def _leave(self) -> None:
        """Frees the rows of requests that are done with, and drops those that wait in vain."""
        for row, ticket in enumerate(self._running):
            if ticket is None:
                continue
            if ticket.reason is not None:
                self._end(ticket, ticket.reason)
                self._free(row)
            elif (reason := ticket.overdue()) is not None:
                self._end(ticket, reason)
                self._free(row)
        for ticket in list(self._queue):
            if (reason := ticket.overdue()) is not None:
                self._queue.remove(ticket)
                self._end(ticket, reason)

    def _admit(self) -> list[tuple[int, Ticket]]:
        """Lets waiting requests into free rows, the first ones first: the rows and the requests."""
        begun = []
        for row in range(self._count):
            while self._running[row] is None and self._queue:
                ticket = self._queue.popleft()
                name = ticket.request.adapter
                if name is not None and name not in self._names:
                    self._end(ticket, "error", f"the adapter {name!r} was removed")
                    continue
                self._running[row] = ticket
                self._versions[row] = None if name is None else self._names[name]
                begun.append((row, ticket))
        return begun

    def _start(self, row: int, ticket: Ticket) -> None:
        """Reads a prompt; the device works outside of the lock."""
        request = ticket.request
        size = _PROMPT_STEP
        while size < len(request.prompt):
            size *= 2
        tokens = np.zeros((1, min(size, self.room)), np.int32)
        tokens[0, : len(request.prompt)] = request.prompt
        prompt = tokens, np.array([len(request.prompt)], np.int32)
        with self._lock:
            in_use = [name for name in self._versions if name is not None]
            try:
                ready = self.pool.ready([self._versions[row]], in_use)
            except (ValueError, OSError) as error:  # its folder is gone: the others go on
                self._end(ticket, "error", str(error))
                self._free(row)
                return
        self._state, first = self._programs.begin(
            ready, self._state, row, prompt, _choice([request])
        )
        self.counts.prompt_tokens += len(request.prompt)
        self._hand_out(ticket, [int(first[0])])

    def _continue(self) -> None:
        tickets = [ticket if ticket and ticket.reason is None else None for ticket in self._running]
        active = np.array([ticket is not None for ticket in tickets])
        if not active.any():
            return
        choice = _choice([ticket.request if ticket else None for ticket in tickets])
        with self._lock:
            ready = self.pool.ready(list(self._versions))
        self._state, tokens = self._programs.advance(ready, self._state, active, choice)
        self.counts.calls += 1
        self.counts.rows += int(active.sum())
        for ticket, own in zip(tickets, np.asarray(tokens).tolist(), strict=True):
            if ticket is not None:
                self._hand_out(ticket, own)

    def _hand_out(self, ticket: Ticket, tokens: list[int]) -> None:
        before = len(ticket.tokens)
        ticket.add(tokens)
        self.counts.tokens += len(ticket.tokens) - before


def _choice(requests: list[Request | None]) -> Choice:
    """The settings of rows; those without a request take the most probable token."""
    settings = [
        (0.0, 0, 1.0, 0) if r is None else (r.temperature, r.top_k, r.top_p, r.seed)
        for r in requests
    ]
    temperature, top_k, top_p, seed = zip(*settings, strict=True)
    return Choice(
        np.array(temperature, np.float32), np.array(top_k, np.int32),
        np.array(top_p, np.float32), np.array([s % 2**32 for s in seed], np.uint32),
    )  # fmt: skip
