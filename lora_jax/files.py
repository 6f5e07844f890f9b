"""Files and folders that are written whole or not at all, and JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_jax.errors import FileError, InputError, brief
from lora_jax.reading import named
from lora_jax.sharding.hosts import barrier, is_main

OTHER_PLACE = "Move it away, or name another place"

# What must hold before this process writes below a folder. Locks belong to a process, and so does this.
_guards: dict[str, Callable[[], None]] = {}


@contextlib.contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """While it lasts, everything here that writes below the folder calls `check` first."""
    key = os.path.abspath(folder)
    _guards[key] = check
    try:
        yield
    finally:
        del _guards[key]


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises what the guards of the folders above a path raise, see `guarded`."""
    place = os.path.abspath(path)
    for folder, check in list(_guards.items()):
        if place == folder or place.startswith(folder + os.sep):
            check()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Of several processes only the first one writes.

    Raises:
      OSError: the disk is full, or the like; it names the file.
    """
    with _whole(path) as beside:
        if beside:
            beside.write_bytes(content)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """The same for a file whose parts are made one after the other, and never are in memory together.

    Args:
      path: of the file.
      pieces: its content; what they raise leaves no file.

    Raises:
      OSError: the disk is full, or the like; it names the file.
    """
    with _whole(path) as beside:
        if beside:
            with beside.open("wb") as file:
                for piece in pieces:
                    file.write(piece)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path | None]:
    """Gives a new file, which takes the place of `path` at the end; None but on the first process."""
    if not is_main():
        yield None
        return
    check_writable(path)
    if path.is_dir():
        raise FileError(path, "", "a folder", "a file, or nothing", OTHER_PLACE)
    beside = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise named(error, path) from error
        raise


def check_folder(folder: Path) -> None:
    """Raises FileError if no folder can be there: a file is in its place or above it, or a bad name."""
    if "\0" in str(folder):
        raise InputError(f"{str(folder)!r} has a NUL character, which no path can have")
    place = folder.absolute()
    try:
        there = next(path for path in (place, *place.parents) if _is_there(path))
        is_folder = there.is_dir()
    except OSError as error:
        raise _no_folder(folder, error) from error
    if not is_folder:
        found = "a file in its place" if there == place else f"the file {there} above it"
        raise FileError(folder, "", found, "a folder, or nothing", OTHER_PLACE)


def _is_there(path: Path) -> bool:
    """Whether there is something of this name; raises OSError for a name that nothing can have."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are missing.

    Raises:
      FileError: there can be no such folder.
      OSError: it may not be made; it names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        check_folder(folder)
        if isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            raise _no_folder(folder, error) from error
        raise named(error, folder) from error


def _no_folder(folder: Path, error: OSError | ValueError) -> FileError:
    why = (error.strerror if isinstance(error, OSError) else "") or str(error)
    found = f"a place where no folder can be made ({why})"
    return FileError(brief(str(folder), 200), "", found, "a folder, or nothing", OTHER_PLACE)


def check_output(path: Path, inputs: Iterable[str | os.PathLike[str]] = (), flag: str = "") -> None:
    """Raises InputError if a file cannot be written there, or is one of those that are read.

    Args:
      path: of the file to be written.
      inputs: files that the same command reads.
      flag: that names the file, for messages, such as `--json`.
    """
    check_folder(path.parent)
    name = f"{flag}={path}" if flag else str(path)
    if path.is_dir():
        raise InputError(f"{name} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{name} is a device or the like; name a file")
    for other in inputs:
        if os.path.exists(other) and path.exists() and os.path.samefile(path, other):
            raise InputError(f"{name} is {os.fspath(other)}, which is read; name another file")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file whole or not at all; makes its folder if needed."""
    path = Path(path)
    make_folder(path.parent)
    write_bytes(path, text.encode())


def replace_folder(source: Path, target: Path) -> None:
    """Replaces the folder `target` by a copy of `source`, see `replaced_folder`.

    Of several processes only the first one writes.
    """
    if is_main():
        with _beside(target) as copy:
            shutil.copytree(source, copy)


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Gives a new folder to write to, which takes the place of `target` at the end.

    Whenever the program is killed, the old or the new folder is whole: at `target`, or where
    `recover_folder` finds it. Of several processes all must call it, and the first one moves folders.
    """
    if is_main():
        with _beside(target) as new:
            make_folder(new)
            yield new
    else:
        yield _names(target)[0]
    barrier("folder replaced")


def recover_folder(target: Path) -> None:
    """Ends the work of a `replaced_folder` that was killed. Only the first process writes."""
    new, old = _names(target)
    if not is_main() or not (new.exists() or old.exists()):
        return
    check_writable(target)
    if not target.exists() and new.exists() and old.exists():  # killed between the two renames
        new.rename(target)
    if target.exists():
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    new, old = _names(target)
    check_writable(target)
    if target.exists() and not target.is_dir():
        raise FileError(target, "", "a file", "a folder, or nothing")
    recover_folder(target)
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise named(error, target) from error
    check_writable(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _names(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")


def set_aside(path: Path, folder: Path | None = None) -> Path:
    """Renames a damaged file or folder so that another can take its place; nothing is lost.

    Args:
      path: of it.
      folder: where it goes, made if needed; None leaves it in its folder.

    Returns:
      Its new path: NAME.damaged, or NAME.damaged-2 and so on.
    """
    check_writable(path)
    folder = folder or path.parent
    make_folder(folder)
    target, number = folder / f"{path.name}.damaged", 1
    while target.exists():
        number += 1
        target = folder / f"{path.name}.damaged-{number}"
    path.rename(target)
    return target


def to_json(value: Any, indent: int | None = 2) -> str:
    """Writes a value as JSON text. NaN and infinity become null, which every reader accepts.

    Args:
      value: mappings, lists, tuples and JSON's scalars, nested.
      indent: spaces per level; None writes one line.

    Raises:
      ValueError: two keys of a mapping are one as texts.
    """

    def clean(x: Any) -> Any:
        if isinstance(x, Mapping):
            named = {str(k): clean(v) for k, v in x.items()}
            if len(named) < len(x):
                raise InputError(
                    f"{brief(list(x))} has keys that are one key in JSON, which has texts only"
                )
            return named
        if isinstance(x, list | tuple):
            return [clean(v) for v in x]
        if isinstance(x, float) and not math.isfinite(x):
            return None
        return x

    return json.dumps(clean(value), indent=indent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file whole or not at all; makes its folder if needed."""
    write_text(path, to_json(value) + "\n")
