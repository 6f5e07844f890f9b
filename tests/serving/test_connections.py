"""Clients that connect and do not send what they should."""

import json
import socket
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from experiments.serve import replies
from experiments.serve.connections import Connection


async def echo(request):
    return JSONResponse(await replies.json_of(request))


@pytest.fixture
def port(monkeypatch):
    """Of a server in a thread that gives its clients a second."""
    monkeypatch.setattr(replies, "SECONDS", 1)
    app = Starlette(routes=[Route("/", echo, methods=["POST"])], exception_handlers=replies.ERRORS)
    config = uvicorn.Config(app, http=Connection, timeout_keep_alive=1, log_level="warning")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"


def answer(port, sent):
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.mark.parametrize("sent", [b"", HEAD])
def test_without_a_request_a_connection_is_closed(port, sent):
    assert answer(port, sent) == b""


def test_a_body_that_does_not_come_is_answered(port):
    found = answer(port, HEAD + b"\r\n{")
    assert found.startswith(b"HTTP/1.1 408")
    assert "within 1 seconds" in json.loads(found.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_whole_requests_are_answered_and_the_connection_stays_for_a_while(port):
    assert answer(port, HEAD + b"\r\n{}").startswith(b"HTTP/1.1 200")
