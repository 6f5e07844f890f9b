"""A request for a continuation, and its ticket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lora_jax.errors import InputError, brief
from lora_jax.ranges import SEED, Number, Whole, check
from lora_jax.serving import tickets
from lora_jax.serving.adapters import Version
from lora_jax.serving.choosing import NO_TOKEN


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


class Ticket(tickets.Ticket):
    """A continuation on its way.

    Attributes:
      request: what was asked for.
      tokens: of the continuation so far, without an end token.
    """

    def __init__(self, request: Request, version: Version, tell: Callable[[Any], None]):
        super().__init__(version, request.seconds, tell)
        self.request = request
        self.tokens: list[int] = []

    def add(self, tokens: list[int]) -> None:
        """Takes new tokens up to the end, and tells the one who waits."""
        for token in tokens:
            if self.reason is not None:
                break
            if token == NO_TOKEN:
                self.reason = "error"
                self.error = (
                    "the model's logits are not finite numbers: its adapter's values are too large"
                )
            elif token in self.request.ends:
                self.reason = "stop"
            else:
                self.tokens.append(token)
                if len(self.tokens) == self.request.max_tokens:
                    self.reason = "length"
        self.notify()
