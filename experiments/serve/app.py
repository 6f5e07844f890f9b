"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from experiments.serve import bodies
from experiments.serve.answers import Answer, FailedError, Piece
from experiments.serve.bodies import Wanted
from experiments.serve.metrics import registry
from experiments.serve.served import Served
from lora_jax.errors import InputError
from lora_jax.serving.adapters import UnknownAdapterError
from lora_jax.serving.tickets import ClosedError, QueueFullError

_LOG = logging.getLogger(__name__)
_PAGE = Path(__file__).with_name("page.html")
_MOST_BYTES = 2**20  # of a request's body
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
_SCAN = 2.0  # seconds between two looks into the folder of adapters


def make(served: Served, *, seconds: float, hosts: list[str]) -> Starlette:
    """The application.

    Args:
      served: the models.
      seconds: until a request is given up.
      hosts: names under which the server may be called; others are refused, so that no page of another
        site reaches it through a name that it made point here.
    """
    handlers = Handlers(served, seconds)
    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/metrics", handlers.metrics),
        Route("/v1/models", handlers.models),
        Route("/v1/completions", handlers.completions, methods=["POST"]),
        Route("/v1/chat/completions", handlers.chat, methods=["POST"]),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(handlers.watch())
        yield
        watching.cancel()
        await run_in_threadpool(served.engine.close, seconds=5.0)

    errors: dict[Any, Callable[..., Any]] = {
        UnknownAdapterError: _missing, InputError: _refused, QueueFullError: _busy,
        ClosedError: _failed, FailedError: _failed, HTTPException: _http,
    }  # fmt: skip
    trusted = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []
    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers=errors, middleware=trusted
    )


class Handlers:
    """What the routes do."""

    def __init__(self, served: Served, seconds: float):
        self._served, self._seconds = served, seconds
        self._registry = registry(served.engine)
        self._created = int(time.time())

    async def watch(self) -> None:
        """Looks into the folder of adapters again and again."""
        while True:
            await asyncio.sleep(_SCAN)
            try:
                await run_in_threadpool(self._served.scan)
            except Exception:  # of one look; the next one may be better
                _LOG.exception("the folder of adapters could not be looked through")

    async def page(self, _: Request) -> Response:
        """The page on which two adapters are compared."""
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=headers)

    async def health(self, _: Request) -> Response:
        """Whether the server answers."""
        running, waiting = self._served.engine.load
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting})

    async def metrics(self, _: Request) -> Response:
        """Counts in Prometheus' form."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        """The names that requests may use."""
        await run_in_threadpool(self._served.scan)
        data = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "lora_jax"}
            for name in self._served.names
        ]
        refused = dict(self._served.refused)
        return JSONResponse({"object": "list", "data": data, "refused": refused})

    async def completions(self, request: Request) -> Response:
        """Continues texts."""
        wanted = bodies.completion(await _body(request))
        return await self._answered(request, wanted, chat=False)

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        wanted = bodies.chat(await _body(request))
        return await self._answered(request, wanted, chat=True)

    async def _answered(self, request: Request, wanted: Wanted, *, chat: bool) -> Response:
        if wanted.model not in self._served.names:
            await run_in_threadpool(self._served.scan)
        answer = Answer(self._served, wanted, self._seconds)
        form = _Form(wanted.model, chat, self._served)
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

    def __init__(self, model: str, chat: bool, served: Served):
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
        yield _event(_error(str(error), "server_error"))
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


async def _body(request: Request) -> Any:
    """The JSON of a request.

    Raises:
      InputError: it is too long or no JSON.
    """
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > _MOST_BYTES:
                raise HTTPException(413, f"the body has more than {_MOST_BYTES:,} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the client is gone") from None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {error}") from error


def _error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse(_error(str(error), "invalid_request_error"), status_code=400)


async def _missing(_: Request, error: Exception) -> Response:
    body = _error(str(error), "invalid_request_error", "model_not_found")
    return JSONResponse(body, status_code=404)


async def _busy(_: Request, error: Exception) -> Response:
    return JSONResponse(
        _error(str(error), "rate_limit_error"), status_code=429, headers={"Retry-After": "1"}
    )


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse(_error(str(error), "server_error"), status_code=503)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = _error(error.detail, "invalid_request_error")
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
