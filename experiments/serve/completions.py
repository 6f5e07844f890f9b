"""The routes of a decoder: continuations of texts and of conversations, whole or as streams."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from experiments.serve import bodies
from experiments.serve.answers import Answer, Piece
from experiments.serve.bodies import Wanted
from experiments.serve.decoder import ServedDecoder
from experiments.serve.replies import FailedError, error_body, json_of

PATHS = ("/v1/completions", "/v1/chat/completions")


def routes(served: ServedDecoder, seconds: float) -> list[Route]:
    """The routes.

    Args:
      served: the models.
      seconds: until a request is given up.
    """
    handlers = _Handlers(served, seconds)
    each = (handlers.completions, handlers.chat)
    return [Route(path, of, methods=["POST"]) for path, of in zip(PATHS, each, strict=True)]


class _Handlers:
    def __init__(self, served: ServedDecoder, seconds: float):
        self._served, self._seconds = served, seconds

    async def completions(self, request: Request) -> Response:
        """Continues texts."""
        wanted = bodies.completion(await json_of(request))
        return await self._answered(request, wanted, chat=False)

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        wanted = bodies.chat(await json_of(request))
        return await self._answered(request, wanted, chat=True)

    async def _answered(self, request: Request, wanted: Wanted, *, chat: bool) -> Response:
        if wanted.model not in self._served.names:
            await run_in_threadpool(self._served.scan)
        answer = Answer()
        await run_in_threadpool(answer.submit, self._served, wanted, self._seconds)
        form = _Form(wanted.model, chat)
        if wanted.stream:
            return StreamingResponse(
                _stream(answer, form, request, usage=wanted.usage), media_type="text/event-stream"
            )
        count = len(wanted.prompts) * wanted.choices
        texts, reasons = [""] * count, [""] * count
        async for piece in answer.pieces(request.is_disconnected):
            texts[piece.index] += piece.text
            reasons[piece.index] = piece.reason or ""
        choices = [
            form.choice(Piece(i, text, reason), whole=True)
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return JSONResponse(form.body(choices, whole=True, usage=_usage(answer)))


class _Form:
    """The form of the answers of one request."""

    def __init__(self, model: str, chat: bool):
        self._model, self._chat = model, chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def choice(self, piece: Piece, *, whole: bool) -> dict[str, Any]:
        """A continuation, or a piece of one."""
        ending = {"index": piece.index, "finish_reason": piece.reason, "logprobs": None}
        if not self._chat:
            return {**ending, "text": piece.text}
        message = {"role": "assistant", "content": piece.text}
        return {**ending, "message" if whole else "delta": message}

    def body(
        self, choices: list[dict[str, Any]], *, whole: bool, usage: dict[str, int] | None = None
    ) -> dict[str, Any]:
        """An answer, or a part of a stream."""
        kind = "chat.completion" if self._chat else "text_completion"
        if self._chat and not whole:
            kind = "chat.completion.chunk"
        body = {
            "id": self._id, "object": kind, "created": self._created, "model": self._model,
            "choices": choices,
        }  # fmt: skip
        return body if usage is None else {**body, "usage": usage}


async def _stream(
    answer: Answer, form: _Form, request: Request, *, usage: bool
) -> AsyncIterator[str]:
    try:
        async for piece in answer.pieces(request.is_disconnected):
            yield _event(form.body([form.choice(piece, whole=False)], whole=False))
        if usage:
            yield _event(form.body([], whole=False, usage=_usage(answer)))
    except FailedError as error:
        yield _event(error_body(str(error), "server_error"))
    finally:
        answer.cancel()
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
    }  # fmt: skip
