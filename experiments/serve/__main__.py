"""A server for a base and a folder of adapters, in the OpenAI form; requests for all of them share batches.

    python -m experiments.serve --model=NAME [--adapters=FOLDER] [--port=8000]

NAME is a decoder, or an encoder whose adapters are classifiers: a folder, package:NAME or a hub name. FOLDER
has one subfolder for every adapter, an adapter folder or the --workdir of a run; its name is the `model` of
requests. What comes into the folder while the server runs is served too, what leaves it is not any more. The
base itself is the model `base`, if it can answer: a decoder, or a classifier with a head of its own.

    GET  /                      a page to compare two adapters side by side
    POST /v1/completions        continues a text (of decoders)
    POST /v1/chat/completions   answers a conversation, where the model has a chat template (of decoders)
    POST /v1/classify           classes with probabilities, or numbers, of texts or pairs (of encoders)
    GET  /v1/models             what is served, and why some folders are not
    GET  /metrics, /health      counts in Prometheus' form; whether it answers

Texts to be classified are read as experiments.predict reads them: cut at the length of the task's run, empty
ones refused. The server listens on this machine only (--host=127.0.0.1); it has no passwords: behind another
host put a proxy that has. Ctrl-C or SIGTERM ends it when the requests that it has are answered, or after
--timeout seconds; a second Ctrl-C at once.
"""

from __future__ import annotations

import contextlib
import math
import socket
from typing import Any

import uvicorn
from absl import flags

from experiments.runs import command_line
from experiments.serve import app as application
from experiments.serve.connections import SECONDS, Connection
from experiments.serve.load import load
from experiments.serve.served import Sizes
from lora_jax.errors import InputError
from lora_jax.models.parts import FLOAT
from lora_jax.ranges import Number, Range, Whole, check

_RANGES: dict[str, Range] = {
    "port": Whole(least=1, most=65535),
    "rows": Whole(least=1, most=1024),
    "room": Whole(least=64, most=2**20),
    "steps": Whole(least=1, most=16),
    "waiting": Whole(least=0, most=100_000),
    "capacity": Whole(least=0, most=4096),
    "rank": Whole(least=0, most=4096),
    "outputs": Whole(least=1, most=4096),
    "timeout": Number(above=0, most=86_400),
}
_OWN_NAMES = ["localhost", "127.0.0.1", "[::1]"]


def main(_: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        values: dict[str, Any] = {
            name: check(f"--{name}", flags.FLAGS[name].value, allowed)
            for name, allowed in _RANGES.items()
        }
        if not _MODEL.value:
            raise InputError("name the base: --model=FOLDER, package:NAME or a hub name")
        host, port = _HOST.value, values["port"]
        listening = _listening(host, port)
        command_line.say(f"reading {_MODEL.value}, and compiling")
        sizes = Sizes(**{name: values[name] for name in _RANGES if name not in ("port", "timeout")})
        served = load(_MODEL.value, _ADAPTERS.value, _FORMAT.value, sizes)
        for name, why in served.refused.items():
            command_line.say(f"not served: {name}: {why}")
        command_line.say(f"serving {', '.join(served.names)} at http://{host}:{port}")
        local = host in ("127.0.0.1", "localhost", "::1")
        made = application.make(
            served, seconds=values["timeout"], hosts=_OWN_NAMES if local else []
        )
        server = uvicorn.Server(uvicorn.Config(
            made, log_level="warning", http=Connection,
            timeout_keep_alive=SECONDS, timeout_graceful_shutdown=math.ceil(values["timeout"]),
            limit_concurrency=served.engine.most_waiting + 64,
        ))  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):  # it has ended by then
            server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """The socket of an address: one that is taken is told before the model is read."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"--host={host} --port={port}: {error.strerror}; name another --port or --host"
        ) from error


if __name__ == "__main__":
    _MODEL = flags.DEFINE_string("model", "", "The base: a folder, package:NAME, or a hub name.")
    _ADAPTERS = flags.DEFINE_string("adapters", "", "Folder with a subfolder for every adapter.")
    _FORMAT = flags.DEFINE_string("base_format", FLOAT, "Of the base's matrices: float, nf4, ...")
    _HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
    flags.DEFINE_integer("port", 8000, "Port.")
    flags.DEFINE_integer("rows", 8, "Requests answered at once; of encoders, rows of 128 tokens.")
    flags.DEFINE_integer(
        "room", 1024, "Tokens of the longest prompt with its continuation, or text."
    )
    flags.DEFINE_integer("steps", 4, "Tokens between two chances for requests to enter and leave.")
    flags.DEFINE_integer("waiting", 0, "Requests that may wait; 0: 256, or 4096 texts of encoders.")
    flags.DEFINE_integer("capacity", 0, "Adapters on the device; 0: as many as rows.")
    flags.DEFINE_integer("rank", 0, "Largest rank of adapters that come later; 0: of those there.")
    flags.DEFINE_integer(
        "outputs", 64, "Outputs of the widest head that comes later (of encoders)."
    )
    flags.DEFINE_float("timeout", 300.0, "Seconds until a request is given up.")
    command_line.run(main)
