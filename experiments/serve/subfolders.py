"""The subfolders of a folder of adapters, and whether their files have changed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lora_jax.adapter_files import WEIGHTS
from lora_jax.adapters import DESCRIPTION
from lora_jax.not_adapters import what_else
from lora_jax.run_folder import RESULT

_LOG = logging.getLogger(__name__)
State = tuple[tuple[int, int], ...]  # times and sizes of files


def subfolders(folder: Path | None) -> dict[str, tuple[Path, State]]:
    """The subfolders that hold an adapter or a run by name, with the state of their files.

    Those of which an adapter can be made (of PEFT, say), and those at whose files nobody may look, are among
    them: reading them says what is wrong. Bytes of a name that are no UTF-8, which no client could send, are
    written out.

    Args:
      folder: of adapters; None for none.
    """
    try:
        inside = sorted(folder.iterdir()) if folder else []
    except OSError as error:  # it may come back
        _LOG.warning("no adapters: %s", error)
        return {}
    found = {}
    for each in inside:
        if (state := _state_of(each)) is not None:
            name = os.fsencode(each.name).decode("utf-8", "backslashreplace")
            found[name] = each, state
    return found


def _state_of(folder: Path) -> State | None:
    """The state of a subfolder's files; () if nobody may look at them, None if there is nothing to say."""
    try:
        for place in (folder, folder / "adapter", folder / "seed_0" / "adapter"):
            if (place / DESCRIPTION).is_file():
                return tuple(map(_of_file, (place / DESCRIPTION, place / WEIGHTS, folder / RESULT)))
        if folder.is_dir() and what_else(folder):
            return (_of_file(folder),)
    except OSError:
        return ()
    return None


def _of_file(file: Path) -> tuple[int, int]:
    """Time and size of a file; zeros if there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
