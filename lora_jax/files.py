"""Files and folders that are written whole or not at all, and JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import InputError
from lora_jax.sharding.hosts import is_main


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Of several processes only the first one writes."""
    if not is_main():
        return
    beside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file whole or not at all; makes its folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def replace_folder(source: Path, target: Path) -> None:
    """Replaces the folder `target` by a copy of `source`.

    The copy is written beside it and renamed. Of several processes only the first one writes.
    """
    if not is_main():
        return
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def to_json(value: Any, indent: int | None = 2) -> str:
    """Writes a value as JSON text. NaN and infinity become null, which every reader accepts.

    Args:
      value: mappings, lists, tuples and JSON's scalars, nested.
      indent: spaces per level; None writes one line.
    """

    def clean(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {str(k): clean(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [clean(v) for v in x]
        if isinstance(x, float) and not math.isfinite(x):
            return None
        return x

    return json.dumps(clean(value), indent=indent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file whole or not at all; makes its folder if needed."""
    write_text(path, to_json(value) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      ValueError: the file is not valid JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} should hold a JSON object, holds {str(content)[:60]!r}: fetch it again"
        )
    return content
