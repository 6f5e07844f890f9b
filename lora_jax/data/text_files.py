"""Finding and reading the files of a corpus, plain or gzipped, with errors that say where."""

from __future__ import annotations

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any


def find(folders: Iterable[pathlib.Path], names: Sequence[str]) -> list[pathlib.Path]:
    """Returns the files of the first name that some folder has, [] if none has any.

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
            found = plain | {path for path in packed if path.with_suffix("") not in plain}
            if found:
                return sorted(found)
    return []


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a UTF-8 file, unpacked if its name ends in .gz, line ends untouched.

    Raises:
      ValueError: the file is no whole gzip file or no UTF-8.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise malformed(path, "bytes", f"no whole gzip data ({error})", "gzip data") from error
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
        raise malformed(path, f"line {error.lineno}", f"no JSON ({error.msg})", "JSON") from error


def field(path: pathlib.Path, where: str, record: Any, key: str, kind: type) -> Any:
    """Returns record[key].

    Raises:
      ValueError: `record` is no JSON object, has no such key, or its value is not of `kind`.
    """
    if not isinstance(record, dict) or not isinstance(record.get(key), kind):
        found = repr(record.get(key) if isinstance(record, dict) else record)[:60]
        raise malformed(path, where, f"{key!r}: {found}", f"a {kind.__name__} under {key!r}")
    return record[key]


def malformed(path: pathlib.Path, where: str, found: str, expected: str) -> ValueError:
    """Returns the error for a bad file: where it is bad, what is there and what should be."""
    return ValueError(
        f"{path}, {where}: found {found}, expected {expected}. Get the file again from the "
        "repository that lora_jax.data.data_to_text names for it, or repair this place."
    )
