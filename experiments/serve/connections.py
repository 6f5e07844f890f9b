"""Connections that hold a place of the server and send no request are closed."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 30  # that a client has to send a request's head, its body, or the next request


class Connection(H11Protocol):
    """uvicorn's, which by itself waits for ever for the first request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives the client as long for its first request as `timeout_keep_alive` gives for others."""
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
