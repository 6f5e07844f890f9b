"""adapter.json: the keys that it has and their types, and the digests that tie it to its tensors."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax import methods
from lora_jax.errors import FileError, InputError, InputTypeError, SettingError
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.methods.registry import MOST_PARTS
from lora_jax.reading import Record, as_object, parse_json, read_object
from lora_jax.tensor_files import Tensors

FORMAT = "lora_jax adapter 1"
OF_TENSORS, OF_DESCRIPTION = "tensors_sha256", "description_sha256"
AGAIN = "Copy both files of the adapter again from where they were saved"
_FIXED = ("format", "method", "groups", "base", "state")  # all but notes


def read(path: Path) -> Record:
    """adapter.json, of which the keys and their types are checked.

    Raises:
      MissingFileError, FileError, OSError: see `reading.read_object`; or unknown, missing or other keys.
    """
    return _checked(read_object(path, AGAIN))


def as_read(description: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """A description as it will be read again.

    Raises:
      InputError: it could not be, because notes are no JSON values.
    """
    try:
        text = to_json(description)
    except TypeError as error:
        raise InputTypeError(f"{path} is not written: notes must be JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not written: notes must be JSON ({error})") from error
    return _checked(as_object(parse_json(text, path), path)).values


def _checked(record: Record) -> Record:
    if record.get("format", str, "") != FORMAT:
        raise record.error("format", repr(record.values.get("format")), repr(FORMAT))
    known = (*_FIXED, "notes", OF_TENSORS)
    if unknown := sorted(record.values.keys() - set(known)):
        expected = f"the keys {', '.join(known)}; perhaps a newer version of lora_jax wrote it"
        raise record.error(unknown[0], "a key that this version does not know", expected)
    parts = record.get("method", list)
    if not 0 < len(parts) <= MOST_PARTS:
        raise record.error("method", f"{len(parts):,} parts", f"1 to {MOST_PARTS} parts")
    record.text_by_name("groups")
    record.get("base", str)
    record.get("notes", dict)
    record.strings("state", [])
    record.get(OF_TENSORS, str, "")
    return record


def check_together(tensors: Tensors, record: Record) -> None:
    """Raises FileError if the tensors do not name the description; of earlier versions neither does."""
    named = tensors.metadata.get(OF_DESCRIPTION)
    expected = digest(record.values) if OF_TENSORS in record.values else None
    if named == expected:
        return
    if expected is None:
        raise FileError(
            record.path, OF_TENSORS, "nothing",
            f"the SHA-256 of {tensors.path}, which names its description", AGAIN,
        )  # fmt: skip
    raise FileError(
        record.path, "", "another description than the one that the tensors were saved with",
        f"what {tensors.path} was saved with in all keys but notes, which alone may be edited",
        f"{AGAIN}, or change an adapter by loading it and saving it with lora_jax.save_adapter",
    )  # fmt: skip


def method_of(record: Record) -> Method:
    """The method of a description; raises FileError for one that cannot be built."""
    built = []
    for number, part in enumerate(record.get("method", list)):
        try:
            built.append(methods.from_json([part]))
        except InputError as error:
            raise SettingError(record.path, f"method[{number}]", error) from error
    return functools.reduce(operator.add, built)


def digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description without its notes, as it comes back from JSON. Order counts, as of targets."""
    fixed = [[key, description.get(key)] for key in _FIXED]
    return hashlib.sha256(json.dumps(fixed, separators=(",", ":")).encode()).hexdigest()
