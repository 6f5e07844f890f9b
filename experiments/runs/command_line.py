"""What every command shares: flags, hosts, and errors a person can read."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.runs import process, troubleshooting, typos
from lora_jax.errors import DivergedError, InputError
from lora_jax.sharding import hosts


def say(text: object) -> None:
    """Prints at once, also into files and pipes; on the first host only."""
    if hosts.is_main():
        print(text, flush=True)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command: tunes its process, parses its flags, and calls `main` with what is no flag."""
    process.tune()

    def quietly(arguments: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax and JAX say a lot at INFO
        main(arguments)

    app.run(quietly, flags_parser=parse_flags)


def parse_flags(arguments: list[str]) -> list[str]:
    """The `flags_parser` of `app.run`: what is wrong with flags and config is one readable message.

    Whatever the file of the config raises is told: it is the user's own code.
    """
    try:
        rest = flags.FLAGS(arguments)
        if "config" in flags.FLAGS:
            dict(flags.FLAGS["config"].value or {})  # a file that could not be loaded shows here
    except Exception as error:
        if os.environ.get("LORA_JAX_DEBUG"):
            raise
        sys.exit(_told(_config_error(error, arguments)))
    if "config" in flags.FLAGS:
        with readable_errors():
            refuse_rest(rest)
    return rest


def refuse_rest(arguments: list[str]) -> None:
    """Raises InputError if a command that takes flags alone got anything else, such as a `=` with blanks."""
    if arguments[1:]:
        raise InputError(
            f"unknown arguments {arguments[1:]}: write --NAME=VALUE without blanks around '='"
        )


def _config_error(error: Exception, arguments: list[str]) -> str:
    """What went wrong with the config that a command line names."""
    file = _config_file(arguments)
    config = _loaded(file)
    if config is not None:
        if unknown := typos.unknown_field(config, arguments):
            return unknown
        if isinstance(error, flags.UnrecognizedFlagError):
            name = error.flagname
            if "Did you mean" not in str(error) and (meant := typos.instead(config, name)):
                return f"unknown flag --{name}, did you mean {meant}?"
    path = Path(file.partition(":")[0])
    if file and not path.is_file():
        there = "is a folder" if path.is_dir() else "does not exist"
        return f"--config={file}: {path} {there}; name a file such as configs/glue/minilm.py:rte"
    own = _of_config(error)
    if own is None:
        return f"{' '.join(str(error).split())}; --help lists all flags"
    return f"--config={file}: {own}"


def _loaded(file: str) -> ConfigDict | None:
    """The config of a file, without what the command line changes; None if it cannot be had."""
    if not file:
        return None
    with contextlib.suppress(Exception):  # of the user's own code, told elsewhere
        config = flags.FLAGS["config"].parser.parse(file)
        return config if isinstance(config, ConfigDict) else None
    return None


def _config_file(arguments: list[str]) -> str:
    """What `--config` has on a command line; "" without it."""
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else after
    return ""


_ROOT = Path(__file__).resolve().parents[2]  # of this project


def _of_config(error: Exception) -> str | None:
    """What the code of a config raised, with its place; None if the error is of flags alone.

    What a config of this project or the library refuses is a message for users; of all else they see
    where it comes from.
    """
    first: BaseException = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    if isinstance(first, SyntaxError):
        return f"SyntaxError: {first.msg} ({first.filename}, line {first.lineno})"
    frames = traceback.extract_tb(first.__traceback__)
    starts = [i for i, frame in enumerate(frames) if frame.filename.endswith("config_flags.py")]
    own = [f for f in frames[starts[-1] + 1 :] if "importlib" not in f.filename] if starts else []
    if not own:
        return None if isinstance(error, flags.Error) else f"{type(first).__name__}: {first}"
    refused = isinstance(first, ValueError) and _ROOT in Path(own[-1].filename).resolve().parents
    if refused:
        return str(first)
    place = f"{own[-1].filename}, line {own[-1].lineno}"
    lines = "".join(traceback.format_list(own)).rstrip()
    return f"{type(first).__name__}: {first} ({place})\n{lines}"


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
        sys.exit(_told(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint")


def _told(error: object) -> str:
    """An error as commands end with it, and where the documents explain it, if they do."""
    link = troubleshooting.link(str(error))
    return f"error: {error}" + (f"\nsee {link}" if link else "")
