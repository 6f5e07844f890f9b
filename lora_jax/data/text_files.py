"""Finds and reads the files of a corpus, plain or gzipped; errors name the file and the place.

The reading itself, with its bounds, is that of `lora_jax.reading`.
"""

from __future__ import annotations

import pathlib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from lora_jax import reading
from lora_jax.errors import FileError, InputError

_Value = TypeVar("_Value")

MOST = 2**26  # bytes of a file, unpacked; the largest of the corpora has 24 million
_REMEDY = (
    "Get the file again from the repository that lora_jax.data.corpora names for it, or "
    "repair this place"
)
_SHORT = reprlib.Repr()  # of values that may be large or nested deep
_SHORT.maxstring = _SHORT.maxother = 60


def folder(source: str) -> pathlib.Path:
    """The path of a folder that a user named.

    Raises:
      ValueError: `~name` for a user that does not exist, or a NUL character.
    """
    if "\0" in source:
        raise InputError(f"{source!r} has a NUL character, which no path can have")
    try:
        return pathlib.Path(source).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{source!r} names no folder, as there is no such user. Write the path out"
        ) from error


def find(folders: Iterable[pathlib.Path], names: Sequence[str]) -> list[pathlib.Path]:
    """Finds the files of the first name that some folder has; returns [] if none has any.

    Args:
      folders: where to look, best first.
      names: file names or patterns relative to a folder, best first. A file may also have .gz
        appended; the plain one is taken if both are there. All matches of a pattern are returned,
        sorted by path.

    Raises:
      InputError: several folders have files of the name, or a packed file has another text than the plain
        one beside it: which of them is meant is not known.
    """
    folders = list(folders)
    for name in names:
        found = [files for place in folders if (files := _matching(place, name))]
        if len({tuple(path.resolve() for path in files) for files in found}) > 1:
            the_one([files[0] for files in found])
        if found:
            return found[0]
    return []


def _matching(place: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The files of a name or pattern in one folder."""
    plain = {path for path in place.glob(name) if path.is_file()}
    packed = {path for path in place.glob(f"{name}.gz") if path.is_file()}
    for path in sorted(packed):
        if path.with_suffix("") in plain:
            the_one([path.with_suffix(""), path])
    return sorted(plain | {path for path in packed if path.with_suffix("") not in plain})


def the_one(paths: Sequence[pathlib.Path]) -> pathlib.Path:
    """The first of several files that may be meant; raises InputError if they are not of one text."""
    first, *others = paths
    for other in others:
        if not first.samefile(other) and read_text(first) != read_text(other):
            raise InputError(
                f"{first} and {other} are both there, with different contents: which of them is meant is "
                "not known. Move one of them away, or name the folder of the other"
            )
    return first


def read_text(path: pathlib.Path, remedy: str = _REMEDY) -> str:
    """Returns the text of a UTF-8 file of at most `MOST` bytes, see `reading.read_text`."""
    return reading.read_text(path, MOST, remedy)


def read_json(path: pathlib.Path) -> Any:
    """Returns the content of a JSON file of at most `MOST` bytes, see `reading.read_json`."""
    return reading.read_json(path, MOST, _REMEDY)


def field(path: pathlib.Path, where: str, record: Any, key: str, kind: type[_Value]) -> _Value:
    """Returns record[key] after checking its type.

    Args:
      path: the file, for the error.
      where: the place in the file, for the error.
      record: JSON value that should be an object.
      key: of the value wanted.
      kind: type that the value must have.

    Raises:
      FileError: `record` is not a JSON object, has no such key, or its value is not of `kind` or is
        a text with a NUL character.
    """
    value = record.get(key) if isinstance(record, dict) else record
    if not isinstance(record, dict) or not isinstance(value, kind):
        expected = f"a {kind.__name__} under {key!r}"
        raise malformed(path, where, f"{key!r}: {short(value)}", expected)
    checked: _Value = value
    if isinstance(checked, str) and "\0" in checked:
        raise malformed(path, where, f"{key!r}: {short(value)}", "a text without NUL characters")
    return checked


def short(value: object) -> str:
    """A short `repr` of a value from outside, however large or deep it is."""
    return _SHORT.repr(value)


def malformed(path: pathlib.Path, where: str, actual: str, expected: str) -> FileError:
    """Makes the error for a bad file.

    Args:
      path: the file.
      where: the place in the file.
      actual: what is there.
      expected: what should be there.
    """
    return FileError(path, where, actual, expected, _REMEDY)
