"""Reading what comes from outside: one door for text and JSON.

Whatever a file holds, reading it ends in its content or in an `InputError` that names the file, the place,
what was found and what was expected. Sizes are bounded before memory is taken; nothing is unpickled and no
code is run.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lora_jax.errors import FileError, MissingFileError

_Value = TypeVar("_Value")

MOST_TEXT = 2**30  # bytes of a text file, unpacked; GLUE's largest is 79 MB
MOST_JSON = 2**26  # bytes of a settings file: config.json, adapter.json, an index
DEPTH = 64  # of nested JSON in a settings file
AGAIN = "Get the file again"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_REQUIRED: Any = object()


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a file.

    Args:
      path: of the file.
      most: bytes that it may have.

    Raises:
      MissingFileError: there is no such file.
      FileError: it is no regular file, or too large.
      OSError: it cannot be read.
    """
    check_file(path, most)
    try:
        return path.read_bytes()
    except OSError as error:
        raise named(error, path) from error


def check_file(path: Path, most: float = math.inf) -> None:
    """Raises as `read_bytes` does, without reading."""
    if not path.exists():
        raise MissingFileError(f"{path} is missing")
    if not path.is_file():
        raise FileError(path, "", "a folder or a device", "a file")
    if (size := path.stat().st_size) > most:
        raise FileError(path, "", f"{size:,} bytes", f"at most {most:,}")


def named(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """The error with the path of the file, which those of a full disk lack."""
    if error.filename is not None:
        return error
    if error.errno is None:
        return type(error)(f"{os.fspath(path)}: {error}")
    return type(error)(error.errno, error.strerror or str(error), os.fspath(path))


def read_text(path: Path, most: int = MOST_TEXT, remedy: str = AGAIN) -> str:
    """The text of a UTF-8 file, unpacked if its name ends in .gz; line ends are untouched.

    Args:
      path: of the file.
      most: bytes that the text may have.
      remedy: end of the message for a broken file.

    Raises:
      MissingFileError, FileError, OSError: as `read_bytes`; or broken gzip data, not UTF-8, or text
        with NUL characters.
    """
    packed = path.suffix == ".gz"
    data = _unpacked(path, most, remedy) if packed else read_bytes(path, most)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FileError(
            path, f"line {line}", "bytes that are not UTF-8", "UTF-8 text", remedy
        ) from error
    if (place := text.find("\0")) >= 0:  # as in UTF-16
        where = f"line {text[:place].count(chr(10)) + 1}"
        raise FileError(path, where, "a NUL character", "UTF-8 text", remedy)
    return text


def _unpacked(path: Path, most: int, remedy: str) -> bytes:
    """The content of a gzip file; no more than `most` bytes are unpacked."""
    check_file(path, most)
    try:
        with gzip.open(path) as file:
            data = file.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(
            path, "bytes", f"broken gzip data ({error})", "gzip data", remedy
        ) from error
    if len(data) > most:
        raise FileError(path, "", f"more than {most:,} bytes when unpacked", f"at most {most:,}")
    return data


class _Twice(Exception):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, if every key is in it once: of several values readers take different ones."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return values


def parse_json(text: str, path: str | os.PathLike[str], remedy: str = AGAIN) -> Any:
    """The value of a JSON text; NaN and infinity, which are not JSON, become None.

    Args:
      text: to parse.
      path: where it is from, for messages.
      remedy: end of the message for a broken file.

    Raises:
      FileError: it is not JSON, has a key twice in an object, or half of a surrogate pair in a string.
    """
    try:
        value = json.loads(text, parse_constant=lambda name: None, object_pairs_hook=_once)
    except _Twice as error:
        name = str(error)[:80]
        raise FileError(path, name, "the key twice in one object", "once", remedy) from error
    except json.JSONDecodeError as error:
        found = f"invalid JSON ({error.msg})"
        raise FileError(path, f"line {error.lineno}", found, "JSON", remedy) from error
    except RecursionError as error:
        raise FileError(path, "", "JSON nested too deep to read", "JSON", remedy) from error
    except ValueError as error:  # integers with thousands of digits
        raise FileError(path, "", f"a number that is too long ({error})", "JSON", remedy) from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise FileError(
                path, "", "half of a surrogate pair in a string", "Unicode text", remedy
            ) from error
    return value


def read_json(path: Path, most: int = MOST_TEXT, remedy: str = AGAIN) -> Any:
    """The content of a JSON file, plain or .gz; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, most, remedy), path, remedy)


def read_object(path: Path, remedy: str = AGAIN) -> Record:
    """The JSON object of a settings file, such as config.json.

    Raises:
      MissingFileError, FileError, OSError: see `read_json`; or no object, or nested too deep.
    """
    return as_object(read_json(path, MOST_JSON, remedy), path, remedy)


def as_object(value: Any, path: Path, remedy: str = AGAIN) -> Record:
    """A value of a settings file as its object; raises FileError as `read_object` does."""
    if not isinstance(value, dict):
        raise FileError(path, "", repr(value)[:60], "a JSON object", remedy)
    if _deeper(value, DEPTH):
        raise FileError(path, "", "JSON nested too deep", f"at most {DEPTH} levels", remedy)
    return Record(path, value, remedy=remedy)


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


class Record:
    """A JSON object of a file, whose values are checked as they are taken.

    Attributes:
      path: of the file.
      values: of the object.
      where: keys that lead to it, with a dot behind each; "" for the whole file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        values: Mapping[str, Any],
        where: str = "",
        remedy: str = AGAIN,
    ):
        self.path, self.values, self.where, self._remedy = Path(path), dict(values), where, remedy

    def get(self, key: str, kind: type[_Value], default: Any = _REQUIRED) -> _Value:
        """A value of one type.

        Args:
          key: of the value.
          kind: `int` takes no bool, `float` takes integers too and is finite.
          default: for a key that is not there; without it that is an error.

        Raises:
          FileError: no such key, or a value of another type.
        """
        if key not in self.values:
            if default is _REQUIRED:
                raise self.error(key, "nothing", _NAMES.get(kind, kind.__name__))
            result: _Value = default
            return result
        value = self.values[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1023 else math.inf
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise self.error(key, repr(value)[:80], _NAMES.get(kind, kind.__name__))
        checked: _Value = value
        return checked

    def integer(self, key: str, least: int = 1, most: int = 2**31 - 1) -> int:
        """An integer from `least` to `most`."""
        value = self.get(key, int)
        if not least <= value <= most:
            raise self.error(key, repr(value)[:80], f"an integer from {least} to {most}")
        return value

    def record(self, key: str, remedy: str | None = None) -> Record:
        """An object inside; `remedy` is the end of the messages about its values."""
        remedy = self._remedy if remedy is None else remedy
        return Record(self.path, self.get(key, dict), f"{self.where}{key}.", remedy)

    def records(self, key: str) -> list[Record]:
        """A list of objects."""
        inner = {f"{key}[{number}]": value for number, value in enumerate(self.get(key, list))}
        return [Record(self.path, inner, self.where, self._remedy).record(name) for name in inner]

    def strings(self, key: str, default: Any = _REQUIRED) -> list[str]:
        """A list of strings."""
        values: list[Any] = self.get(key, list, default)
        for number, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{key}[{number}]", repr(value)[:80], "a string")
        return values

    def text_by_name(self, key: str) -> dict[str, str]:
        """An object of strings."""
        inner = self.record(key)
        return {name: inner.get(name, str) for name in inner.values}

    def error(self, key: str, found: str, expected: str) -> FileError:
        """The error for a value; give it to `raise`."""
        return FileError(self.path, f"{self.where}{key}", found, expected, self._remedy)


_NAMES: Mapping[type, str] = {
    dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a finite number",
    bool: "true or false",
}  # fmt: skip
