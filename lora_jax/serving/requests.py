"""A request for a continuation, and the ticket by which one follows it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Literal

from lora_jax.errors import InputError, brief
from lora_jax.ranges import SEED, Number, Whole, check

_LOG = logging.getLogger(__name__)
Reason = Literal["stop", "length", "cancelled", "timeout", "error", "closed"]


class QueueFullError(RuntimeError):
    """As many requests wait as may."""


class ClosedError(RuntimeError):
    """The engine takes no requests any more."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One continuation that somebody wants.

    Attributes:
      prompt: token ids, at least one.
      adapter: name of an adapter of the pool; None for the base.
      ends: ids of the tokens that end it.
      max_tokens: length of the longest continuation.
      temperature: see `Sampling`, as the next two.
      top_k: 0 is all.
      top_p: at most 1.
      seed: of the draws.
      seconds: time until it is given up; None for no limit.

    Raises:
      InputError: a setting is out of its range.
    """

    prompt: tuple[int, ...]
    adapter: str | None = None
    ends: tuple[int, ...] = ()
    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("the prompt is empty; a prompt has at least one token")
        if odd := [token for token in self.prompt if not isinstance(token, int)]:
            raise InputError(f"a prompt is of token ids, whole numbers; got {brief(odd[0])}")
        if self.seconds is not None:
            check("seconds", self.seconds, Number(least=0))
        check("max_tokens", self.max_tokens, Whole(least=1))
        check("top_k", self.top_k, Whole(least=0))
        check("temperature", self.temperature, Number(least=0))
        check("top_p", self.top_p, Number(above=0, most=1))
        check("seed", self.seed, SEED)


class Ticket:
    """A request on its way.

    Attributes:
      request: what was asked for.
      tokens: of the continuation so far, without an end token.
      reason: why it ended; None while it goes on.
      error: what went wrong, if something did.
    """

    def __init__(self, request: Request, tell: Callable[[Ticket], None]):
        self.request = request
        self.tokens: list[int] = []
        self.reason: Reason | None = None
        self.error: str | None = None
        self.begun = time.monotonic()
        self._cancelled = False
        self._tell = tell

    def cancel(self) -> None:
        """Gives it up; its row is free after the next call."""
        self._cancelled = True

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        limit = self.request.seconds
        return limit is not None and time.monotonic() - self.begun > limit

    def overdue(self) -> Reason | None:
        """Why it must not go on; None if it may."""
        if self._cancelled:
            return "cancelled"
        return "timeout" if self.late else None

    def add(self, tokens: list[int]) -> None:
        """Takes new tokens up to the end, and tells the one who waits."""
        for token in tokens:
            if self.reason is not None:
                break
            if token in self.request.ends:
                self.reason = "stop"
            else:
                self.tokens.append(token)
                if len(self.tokens) == self.request.max_tokens:
                    self.reason = "length"
        self._notify()

    def end(self, reason: Reason, error: str | None = None) -> None:
        """Ends it, and tells the one who waits."""
        self.reason, self.error = reason, error
        self._notify()

    def _notify(self) -> None:
        try:
            self._tell(self)
        except Exception:  # nobody is there any more
            _LOG.debug("the one who waited is gone", exc_info=True)
            self._cancelled = True
