"""Continuous batching: a thread that lets requests into free rows of a running batch and hands out tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lora_jax.checks import Integer, integer
from lora_jax.errors import InputError
from lora_jax.pool.pool import AdapterPool
from lora_jax.serving import worker
from lora_jax.serving.adapters import Version
from lora_jax.serving.choosing import Choice
from lora_jax.serving.requests import Request, Ticket
from lora_jax.serving.rows import Programs

_PROMPT_STEP = (
    32  # prompts are padded to 32, 64, 128, ... tokens, so that few programs are compiled
)


@dataclasses.dataclass
class Counts(worker.Counts):
    """What an engine has done.

    Attributes:
      prompt_tokens: that were read.
      tokens: that were handed out.
      calls: of the program that continues all rows.
      rows: in use in those calls, summed.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    calls: int = 0
    rows: int = 0


class Engine(worker.Worker[Ticket]):
    """Answers requests for the adapters of a pool, in the order in which they come.

        engine = Engine(pool)
        ticket = engine.submit(Request(prompt, "e2e"), tell)    # `tell` is called with every piece

    One thread owns the device: it fills free rows with waiting requests, continues all rows by a few tokens,
    and tells the owners of the tickets. Adapters are added and removed through it while it runs. A request
    keeps the adapter that it was taken for, also if another one gets its name.

    Attributes:
      counts: what it has done so far.
      room: tokens of the longest prompt with its continuation.
    """

    counts: Counts

    def __init__(
        self,
        pool: AdapterPool[Any],
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
        super().__init__(pool, waiting)
        self.counts = Counts()
        self._count = integer("rows", rows, most=4096)
        self._steps = integer("steps", steps, most=16)
        longest: int = pool.base.config.max_length  # type: ignore[attr-defined]
        self.room = min(integer("room", room), longest)
        if pool.capacity < self._count:
            raise InputError(
                f"a batch of {self._count} rows can need as many adapters at once, and the pool holds "
                f"{pool.capacity}; make it with capacity={self._count}"
            )
        self._programs = Programs(pool, self._count, self.room, self._steps)
        self._state = self._programs.empty()
        self._running = [None] * self._count
        self._thread.start()

    @property
    def spare(self) -> int:
        """Tokens of the room that prompts and continuations cannot have: a call may go over their end."""
        return self._steps

    def submit(
        self, request: Request, tell: Callable[[Ticket], None], version: Version | None = None
    ) -> Ticket:
        """Takes a request.

        Args:
          request: for an adapter that there is.
          tell: called by the engine's thread with every piece, and at the end; it must return at once.
          version: of the adapter, from `using`; None for that which the name stands for now.

        Raises:
          InputError: the adapter is unknown, or there is no room for the prompt and its continuation.
          QueueFullError: too many requests wait.
          ClosedError: the engine is closing.
        """
        if len(request.prompt) + request.max_tokens > self.room - self.spare:
            raise InputError(
                f"a prompt of {len(request.prompt):,} tokens and {request.max_tokens:,} new ones do not fit "
                f"the {self.room - self.spare:,} tokens of a conversation here; ask for fewer, "
                f"or make room for more (of a server: --room)"
            )
        vocabulary: int = self.pool.base.config.vocab_size  # type: ignore[attr-defined]
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocabulary:
            odd = next(token for token in request.prompt if not 0 <= token < vocabulary)
            raise InputError(f"the prompt has the token {odd}, and the model knows {vocabulary:,}")
        with self.using(request.adapter if version is None else version) as chosen:
            ticket = Ticket(request, chosen, tell)
            self._take([ticket])
        return ticket

    def _step(self) -> None:
        with self._lock:
            self._leave()
            begun = self._admit()
        for row, ticket in begun:
            self._start(row, ticket)
        self._continue()

    def _reset(self) -> None:
        """Begins with a new state: the old one may be half consumed."""
        self._state = self._programs.empty()

    def _leave(self) -> None:
        """Frees the rows of requests that are done with, and drops those that wait in vain."""
        for row, ticket in enumerate(self._running):
            if ticket is not None and (reason := ticket.reason or ticket.overdue()) is not None:
                self._running[row] = None
                self._end(ticket, reason)
        self._drop_overdue()

    def _admit(self) -> list[tuple[int, Ticket]]:
        """Lets waiting requests into free rows, the first ones first: the rows and the requests."""
        begun = []
        for row in range(self._count):
            if self._running[row] is None and self._queue:
                self._running[row] = ticket = self._queue.popleft()
                begun.append((row, ticket))
        return begun

    def _in_pool(self) -> list[str | None]:
        """Names in the pool of every row's adapter."""
        return [ticket.version.name if ticket else None for ticket in self._running]

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
            in_use = [name for name in self._in_pool() if name is not None]
            try:
                ready = self.pool.ready([ticket.version.name], in_use)
            except (ValueError, OSError) as error:  # its folder is gone: the others go on
                self._running[row] = None
                self._end(ticket, "error", str(error))
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
            ready = self.pool.ready(self._in_pool())
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
