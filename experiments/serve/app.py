"""The application: the routes that all servers have, and those of what is served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from experiments.serve import classify, completions
from experiments.serve.classifier import ServedClassifier
from experiments.serve.decoder import ServedDecoder
from experiments.serve.metrics import registry
from experiments.serve.replies import ERRORS
from lora_jax.serving.adapters import UnknownAdapterError

_LOG = logging.getLogger(__name__)
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
_SCAN = 2.0  # seconds between two looks into the folder of adapters
AnyServed = ServedDecoder | ServedClassifier


def make(served: AnyServed, *, seconds: float, hosts: list[str]) -> Starlette:
    """The application.

    Args:
      served: the models.
      seconds: until a request is given up.
      hosts: names under which the server may be called; others are refused, so that no page of another
        site reaches it through a name that it made point here.
    """
    if isinstance(served, ServedDecoder):
        page, own = "page.html", completions.routes(served, seconds)
        others = _elsewhere(classify.PATHS, "decoders", completions.PATHS)
    else:
        page, own = "classify.html", classify.routes(served, seconds)
        others = _elsewhere(completions.PATHS, "classifiers", classify.PATHS)
    handlers = Handlers(served, Path(__file__).with_name(page))
    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/metrics", handlers.metrics),
        Route("/v1/models", handlers.models),
        Route("/v1/models/{name:path}", handlers.model),
        *own,
        *others,
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(handlers.watch())
        yield
        watching.cancel()
        await run_in_threadpool(served.engine.close, seconds=5.0)

    trusted = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []
    return Starlette(
        routes=routes, lifespan=lifespan, exception_handlers=ERRORS, middleware=trusted
    )


def _elsewhere(paths: tuple[str, ...], kind: str, instead: tuple[str, ...]) -> list[Route]:
    """Routes of servers of another kind, which say so."""

    async def refuse(request: Request) -> Response:
        raise HTTPException(
            404,
            f"this is a server of {kind}: it has no {request.url.path}; use {' or '.join(instead)}",
        )

    return [Route(path, refuse, methods=["POST"]) for path in paths]


class Handlers:
    """What the common routes do."""

    def __init__(self, served: AnyServed, page: Path):
        self._served, self._page = served, page
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
        return HTMLResponse(self._page.read_text(encoding="utf-8"), headers=headers)

    async def health(self, _: Request) -> Response:
        """Whether the server answers."""
        running, waiting = self._served.engine.load
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting})

    async def metrics(self, _: Request) -> Response:
        """Counts in Prometheus' form."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        """The names that requests may use."""
        data = await run_in_threadpool(self._described)
        refused = dict(self._served.refused)
        return JSONResponse({"object": "list", "data": data, "refused": refused})

    async def model(self, request: Request) -> Response:
        """One of them."""
        data = await run_in_threadpool(self._described)
        name = request.path_params["name"]
        found = next((described for described in data if described["id"] == name), None)
        if found is None:
            raise UnknownAdapterError(self._served.unknown(name))
        return JSONResponse(found)

    def _described(self) -> list[dict[str, Any]]:
        self._served.scan()
        common = {"object": "model", "created": self._created, "owned_by": "lora_jax"}
        return [{**described, **common} for described in self._served.described()]
