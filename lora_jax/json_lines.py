"""Files of JSON lines that grow while a program runs, and are read back after it was killed."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_jax.errors import FileError
from lora_jax.files import check_writable, set_aside, to_json, write_bytes
from lora_jax.reading import MOST_TEXT, named, parse_json, read_bytes

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Lines:
    """The lines of a file that are whole, and what is not.

    Attributes:
      texts: of the whole lines, without line ends.
      values: the JSON objects in them.
      bad: numbers (from 1) of the lines that are no JSON objects.
      torn: the text behind the last line end, if it is no JSON object: what a killed program was writing.
    """

    texts: list[str]
    values: list[dict[str, Any]]
    bad: list[int]
    torn: str


def read(path: Path) -> Lines:
    """Reads a file of JSON lines; one that is not there has none.

    Raises:
      FileError: it is a folder, or too large.
      OSError: it cannot be read.
    """
    result, torn = Lines([], [], [], ""), ""
    if not path.exists():
        return result
    lines = read_bytes(path, MOST_TEXT).split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode()
            value = parse_json(text, path)
        except (UnicodeDecodeError, FileError):
            value = None
        if isinstance(value, dict):
            result.texts.append(text)
            result.values.append(value)
        elif number == len(lines):
            torn = line.decode(errors="replace")
        else:
            result.bad.append(number)
    return dataclasses.replace(result, torn=torn)


def mended(
    path: Path, is_whole: Callable[[dict[str, Any]], bool], lost: str
) -> list[dict[str, Any]]:
    """The values of a file without those that are damaged; the file is the rest from then on.

    Args:
      path: of the file; it need not exist.
      is_whole: whether a value is one that the program wrote. The file as it was is kept beside it where a
        line is not.
      lost: what becomes of what the damaged lines held, for the log.

    Raises:
      FileError, OSError: it cannot be read or written.
    """
    lines = read(path)
    pairs = zip(lines.texts, lines.values, strict=True)
    whole = [(text, value) for text, value in pairs if is_whole(value)]
    if damaged := len(lines.bad) + len(lines.values) - len(whole):
        aside = set_aside(path)
        _LOG.warning(
            "%s: %d damaged lines; the file is kept as %s, and %s", path, damaged, aside, lost
        )
    if damaged or lines.torn:
        write_bytes(path, text_of([text for text, _ in whole]))
    return [value for _, value in whole]


def numbers(lines: Sequence[int]) -> str:
    """`line 3`, or `lines 3, 4, 5 and 9 more`, for a message."""
    shown = ", ".join(map(str, lines[:3]))
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


class Appender:
    """Appends lines, each of which is in the file when `write` returns."""

    def __init__(self, path: Path):
        """Opens the file.

        Raises:
          OSError: it cannot be written.
        """
        check_writable(path)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, value: dict[str, Any]) -> None:
        """Appends a value.

        Raises:
          OSError: the disk is full, or the like; it names the file, which has no part of the line.
        """
        check_writable(self._path)
        left = memoryview((to_json(value, indent=None) + "\n").encode())
        end = os.fstat(self._file).st_size
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, end)
            raise named(error, self._path) from error

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def text_of(lines: Sequence[str]) -> bytes:
    """The content of a file with these lines."""
    return "".join(f"{line}\n" for line in lines).encode()
