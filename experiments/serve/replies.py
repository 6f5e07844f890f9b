"""What all routes share: the JSON of bodies, errors in the OpenAI form, and waiting for the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from experiments.serve.connections import SECONDS
from lora_jax.errors import InputError
from lora_jax.serving.adapters import UnknownAdapterError
from lora_jax.serving.tickets import ClosedError, QueueFullError, Ticket

_MOST_BYTES = 2**20  # of a request's body
_POLL = 0.5  # seconds between two looks whether the client is still there
Gone = Callable[[], Awaitable[bool]]


class FailedError(RuntimeError):
    """The engine could not answer."""


class Events:
    """What an engine's thread tells the event loop: numbers of tickets that have something new."""

    def __init__(self) -> None:
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[int]()

    def tell(self, index: int) -> None:
        """Tells of a ticket, from the thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, index)

    async def next(self, gone: Gone) -> int | None:
        """The next number; None if the client is gone."""
        while True:
            try:
                return await asyncio.wait_for(self._queue.get(), _POLL)
            except TimeoutError:
                if await gone():
                    return None


def check_answered(ticket: Ticket) -> None:
    """Raises FailedError for a ticket that ended without an answer."""
    if ticket.reason == "error":
        raise FailedError(ticket.error or "the engine failed")
    if ticket.reason in ("closed", "timeout"):
        closed = ticket.reason == "closed"
        raise FailedError("the server is shutting down" if closed else "the request took too long")


async def json_of(request: Request) -> Any:
    """The JSON of a request.

    Raises:
      InputError: it is no JSON.
      HTTPException: it is too long or too slow, or the client is gone.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise HTTPException(413, f"the body has more than {_MOST_BYTES:,} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the client is gone") from None
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {SECONDS} seconds") from None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {error}") from error


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error as the API has it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "invalid_request_error"), status_code=400)


async def _missing(_: Request, error: Exception) -> Response:
    body = error_body(str(error), "invalid_request_error", "model_not_found")
    return JSONResponse(body, status_code=404)


async def _busy(_: Request, error: Exception) -> Response:
    return JSONResponse(
        error_body(str(error), "rate_limit_error"), status_code=429, headers={"Retry-After": "1"}
    )


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "server_error"), status_code=503)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = error_body(error.detail, "invalid_request_error")
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


ERRORS: dict[Any, Callable[..., Any]] = {
    UnknownAdapterError: _missing, InputError: _refused, QueueFullError: _busy,
    ClosedError: _failed, FailedError: _failed, HTTPException: _http,
}  # fmt: skip
