"""Continuations for a request: from the engine's thread to the event loop, as pieces of text."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import AsyncIterator

from experiments.serve.bodies import Wanted
from experiments.serve.decoder import ServedDecoder
from experiments.serve.pieces import Pieces
from experiments.serve.replies import Events, Gone, check_answered
from lora_jax.data.conversations import Message
from lora_jax.errors import InputError
from lora_jax.serving.adapters import Version
from lora_jax.serving.requests import Request, Ticket


@dataclasses.dataclass
class Piece:
    """New text of one continuation.

    Attributes:
      index: of the continuation.
      text: that is new.
      reason: why it ended; None while it goes on.
    """

    index: int
    text: str
    reason: str | None


class Answer:
    """The continuations of one request.

    Attributes:
      prompt_tokens: of its prompts.
      completion_tokens: of its continuations so far.
    """

    def __init__(self) -> None:
        self._events = Events()
        self._tickets: list[Ticket] = []
        self._pieces: list[Pieces] = []
        self.prompt_tokens = 0

    def submit(self, served: ServedDecoder, wanted: Wanted, seconds: float) -> None:
        """Reads the prompts and hands them to the engine; it takes a while, so not in the event loop.

        Args:
          served: the models.
          wanted: what the client asks for.
          seconds: until it is given up.

        Raises:
          InputError: an unknown model, or a prompt that does not fit.
          QueueFullError, ClosedError: too many requests wait, or none are taken any more.
        """
        count, most = len(wanted.prompts) * wanted.choices, served.engine.most_waiting
        if count > most:
            raise InputError(
                f"{count} continuations are more than the {most} that may wait here; divide the request"
            )
        seed = secrets.randbelow(2**31 - 1 - 4096) if wanted.seed is None else wanted.seed
        try:
            with served.using(wanted.model) as version:
                for prompt in wanted.prompts:
                    tokens, ends = _tokens(served, version, prompt)
                    self.prompt_tokens += len(tokens)
                    for _ in range(wanted.choices):
                        self._submit(served, wanted, version, tuple(tokens), ends, seconds, seed)
        except BaseException:
            self.cancel()
            raise

    def _submit(
        self, served: ServedDecoder, wanted: Wanted, version: Version, tokens: tuple[int, ...],
        ends: tuple[int, ...], seconds: float, seed: int,
    ) -> None:  # fmt: skip
        index = len(self._tickets)
        room = served.engine.room - len(tokens) - served.engine.spare
        longest = wanted.max_tokens or room
        if longest < 1:
            raise InputError(
                f"the prompt has {len(tokens):,} tokens, and a conversation here at most "
                f"{served.engine.room - served.engine.spare:,}"
            )
        request = Request(
            tokens, wanted.model, ends, longest, wanted.temperature, wanted.top_k, wanted.top_p,
            (seed + index) % (2**31 - 1), seconds,
        )  # fmt: skip

        def tell(_: Ticket) -> None:
            self._events.tell(index)

        self._pieces.append(Pieces(served.tokenizer, wanted.stop))
        self._tickets.append(served.engine.submit(request, tell, version))

    @property
    def completion_tokens(self) -> int:
        """Tokens of the continuations so far."""
        return sum(len(ticket.tokens) for ticket in self._tickets)

    def cancel(self) -> None:
        """Gives all continuations up."""
        for ticket in self._tickets:
            ticket.cancel()

    async def pieces(self, gone: Gone) -> AsyncIterator[Piece]:
        """New text as it comes; it ends early if the client is gone.

        Raises:
          FailedError: the engine failed, or its time was over.
        """
        left = set(range(len(self._tickets)))
        try:
            while left:
                if (index := await self._events.next(gone)) is None:
                    return
                if index in left and (piece := self._piece(index)) is not None:
                    if piece.reason is not None:
                        left.discard(index)
                    yield piece
        finally:
            self.cancel()

    def _piece(self, index: int) -> Piece | None:
        ticket, pieces = self._tickets[index], self._pieces[index]
        reason = ticket.reason
        check_answered(ticket)
        text = pieces.add(list(ticket.tokens), ended=reason is not None)
        if pieces.stopped:
            ticket.cancel()
            return Piece(index, text, "stop")
        if not text and reason is None:
            return None
        return Piece(index, text, reason)


def _tokens(
    served: ServedDecoder, version: Version, prompt: str | tuple[int, ...] | tuple[Message, ...]
) -> tuple[list[int], tuple[int, ...]]:
    if isinstance(prompt, str):
        return served.text_prompt(version, prompt)
    if isinstance(prompt[0], Message):
        return served.chat_prompt(version, [m for m in prompt if isinstance(m, Message)])
    ids = [token for token in prompt if isinstance(token, int)]
    vocab = len(served.tokenizer)
    if max(ids) >= vocab:
        raise InputError(f"'prompt' has the token {max(ids)}, and the model knows {vocab}")
    return ids, served.text_prompt(version, "a")[1]
