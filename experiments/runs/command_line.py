"""What every command shares: flags, hosts, and errors a person can read."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from absl import app, flags

from lora_jax.errors import DivergedError
from lora_jax.sharding import hosts
from lora_jax.sharding.mesh import AXES


def say(text: object) -> None:
    """Prints, on the first host only."""
    if hosts.is_main():
        print(text)


def parse_flags(arguments: list[str]) -> list[str]:
    """The `flags_parser` of `app.run`: a config field that does not exist is a readable error."""
    try:
        return app.parse_flags_with_usage(arguments)
    except AttributeError as error:  # from ml_collections, which names the field only
        named = re.search(r"\w+", str(error))  # in quotes of several kinds, with advice behind
        field = named[0] if named else str(error)
        named_by = [a for a in arguments if f".{field}=" in a or a.endswith(f".{field}")]
        mesh = any(".mesh." in a for a in named_by)
        known = (
            f"a mesh has {', '.join(AXES)}" if mesh else "see the file of --config and its imports"
        )
        sys.exit(
            f"error: {named_by[0] if named_by else field}: no field {field!r} in the config; {known}"
        )


def hosts_flag() -> flags.FlagHolder[str]:
    """Defines `--hosts`, see `join_hosts`."""
    return flags.DEFINE_string(
        "hosts", "", "Several hosts: 'auto' (TPU pods, Slurm, MPI), or HOST:PORT,INDEX/COUNT."
    )


def join_hosts(text: str) -> None:
    """Joins the other hosts of a run if there are any."""
    if text:
        hosts.start(*hosts.parse(text))


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Turns the errors of bad input into a message and exit status 1; LORA_JAX_DEBUG=1 traces them."""
    try:
        yield
        hosts.finish()
    except (ValueError, TypeError, OSError, ImportError, DivergedError) as error:
        if os.environ.get("LORA_JAX_DEBUG"):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")
