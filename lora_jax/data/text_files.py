"""Finds and reads the files of a corpus, plain or gzipped; errors name the file and the line."""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from lora_jax.errors import InputError

_Value = TypeVar("_Value")


def find(folders: Iterable[pathlib.Path], names: Sequence[str]) -> list[pathlib.Path]:
    """Finds the files of the first name that some folder has; returns [] if none has any.

    Args:
      folders: where to look, best first.
      names: file names or patterns relative to a folder, best first. A file may also have .gz
        appended; the plain one is taken if both are there. All matches of a pattern are returned,
        sorted by path.
    """
    folders = list(folders)
    for name in names:
        for folder in folders:
            plain = {path for path in folder.glob(name) if path.is_file()}
            packed = {path for path in folder.glob(f"{name}.gz") if path.is_file()}
            files = plain | {path for path in packed if path.with_suffix("") not in plain}
            if files:
                return sorted(files)
    return []


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a UTF-8 file, unpacked if its name ends in .gz, line ends untouched.

    Raises:
      ValueError: the file is not a complete gzip file, or not UTF-8.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise malformed(path, "bytes", f"broken gzip data ({error})", "gzip data") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise malformed(path, f"line {line}", "bytes that are not UTF-8", "UTF-8 text") from error


def read_json(path: pathlib.Path) -> Any:
    """Returns the content of a JSON file, see `read_text`.

    Raises:
      ValueError: the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise malformed(
            path, f"line {error.lineno}", f"invalid JSON ({error.msg})", "JSON"
        ) from error


def field(path: pathlib.Path, where: str, record: Any, key: str, kind: type[_Value]) -> _Value:
    """Returns record[key] after checking its type.

    Args:
      path: the file, for the error.
      where: the place in the file, for the error.
      record: JSON value that should be an object.
      key: of the value wanted.
      kind: type that the value must have.

    Raises:
      ValueError: `record` is not a JSON object, has no such key, or its value is not of `kind`.
    """
    value = record.get(key) if isinstance(record, dict) else record
    if not isinstance(record, dict) or not isinstance(value, kind):
        actual = f"{key!r}: {repr(value)[:60]}"
        raise malformed(path, where, actual, f"a {kind.__name__} under {key!r}")
    return value


def malformed(path: pathlib.Path, where: str, actual: str, expected: str) -> InputError:
    """Makes the error for a bad file.

    Args:
      path: the file.
      where: the place in the file.
      actual: what is there.
      expected: what should be there.
    """
    return InputError(
        f"{path}, {where}: found {actual}, expected {expected}. Get the file again from the "
        "repository that lora_jax.data.data_to_text names for it, or repair this place."
    )
