"""Files that are written whole or not at all, and JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.sharding.hosts import is_main


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; of several processes only the first one writes."""
    if not is_main():
        return
    beside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; makes its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def replace_folder(source: Path, target: Path) -> None:
    """Replaces `target` by a copy of `source`, written beside and renamed; on the first host."""
    if not is_main():
        return
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON text; NaN and infinity become null, which every reader accepts."""

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
    """Writes a JSON file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (to_json(value) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; a ValueError that names it if it is broken."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): fetch it again") from error
