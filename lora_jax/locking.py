"""One program at a time writes into a folder, also on file systems that several machines share.

    with exclusive(folder):
        ...

The lock is a file in the folder, made, renewed and taken over by `filelock.SoftFileLease`: it names
host, process and the start of the process. A holder on this machine that is gone is recognised at
once; one on another machine by watching for a while whether it still renews the file, so no two
clocks are compared. A holder that was suspended until another took the folder over fails before it
writes again, see `files.guarded`.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_jax import files
from lora_jax.errors import FileError, FolderInUseError
from lora_jax.reading import named
from lora_jax.sharding import hosts

if TYPE_CHECKING:
    from filelock import SoftFileLease

NAME = "in_use.lock"
_RENEWAL = 10.0  # seconds between two renewals
_DEAD = 40.0  # seconds without a renewal after which a holder on another machine counts as dead
_POLL = 0.2  # seconds between two looks
_MOMENTS = (0.0, 0.1, 0.3, 0.6)  # pauses between looks at a lock that seems lost
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(folder: Path, name: str = NAME, patience: float = 0.0) -> Iterator[None]:
    """Locks a folder, which is made if needed; of several hosts of a run the first one takes the lock.

    A folder that was made and into which nothing was written is removed again at the end.

    Args:
      folder: to write into.
      name: of the lock's file.
      patience: seconds to wait for a holder that is alive.

    Raises:
      FolderInUseError: another program holds the lock; on other hosts InputError.
      OSError, FileError: the folder cannot be made or written into.
    """
    with contextlib.ExitStack() as stack:
        hosts.from_main(lambda: stack.enter_context(taken(folder, name, patience)))
        yield


@contextlib.contextmanager
def taken(
    folder: Path, name: str = NAME, patience: float = 0.0, *, quiet: bool = False
) -> Iterator[None]:
    """The same for this process alone, whatever the other hosts do.

    Args:
      folder, name, patience: as of `exclusive`.
      quiet: does not say that a lock was left behind, as for many folders of one program that was ended.
    """
    made = _make(folder)
    try:
        _check_above(folder)
        lock = _acquired(folder / name, patience, quiet)
        try:
            with files.guarded(folder, lambda: _check(folder / name, lock)):
                yield
        finally:
            lock.release()
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """Makes a folder; those that were made, from the innermost."""
    files.check_folder(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    files.make_folder(folder)
    return missing


def _check_above(folder: Path) -> None:
    """Raises FolderInUseError if a program holds a folder that this one lies in."""
    for above in Path(os.path.realpath(folder)).parents:
        if holder := _holder(above / NAME):
            raise FolderInUseError(
                f"{folder} lies in {above}, which is in use by {holder}; use another folder. If that "
                f"program is gone, start it again or delete {above / NAME}",
                above,
            )


def _acquired(path: Path, patience: float, quiet: bool = False) -> SoftFileLease:
    from filelock import SoftFileLease, Timeout  # not needed by those who only read

    lock = SoftFileLease(
        path, lease_duration=_DEAD, heartbeat_interval=_RENEWAL, thread_local=False
    )
    if path.is_dir():
        raise FileError(path, "", "a folder", "the file of a lock, or nothing", files.OTHER_PLACE)
    before = _holder(path)
    try:
        try:
            lock.acquire(timeout=patience, poll_interval=_POLL)
        except Timeout:
            if not _watches(lock, path):
                raise
            lock.acquire(timeout=_DEAD + 2, poll_interval=_POLL, cancel_check=_renewed(path))
    except Timeout as error:
        raise FolderInUseError(_in_use(path), path.parent) from error
    except OSError as error:
        raise named(error, path) from error
    except ValueError as error:  # a lease of another length
        raise FolderInUseError(f"{_in_use(path)} ({error})", path.parent) from error
    if before and not (patience or quiet):
        _LOG.warning("%s: the lock of %s was left behind; it is taken over", path.parent, before)
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    with contextlib.suppress(OSError), path.open("a") as file:
        file.write(f"since={now}\n")  # the protocol lets other keys be
    return lock


def _watches(lock: SoftFileLease, path: Path) -> bool:
    """Whether only time can tell if the holder is alive; says so."""
    owner = lock.owner
    if owner is None or owner.hostname == _this_host():
        return False
    _LOG.warning(
        "%s is locked by %s; waiting for up to %.0f s to see whether that program is alive",
        path.parent, _holder(path), _DEAD,
    )  # fmt: skip
    return True


def _this_host() -> str:
    """The name of this machine, with what tells containers apart, as locks have it."""
    from filelock import SoftFileLease

    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / NAME) as lock:
        assert isinstance(lock, SoftFileLease) and lock.owner is not None
        return lock.owner.hostname


class _renewed:
    """Whether the lock's file has changed since the first call, and is there."""

    def __init__(self, path: Path):
        self._path, self._seen = path, _stamp(path)

    def __call__(self) -> bool:
        stamp = _stamp(self._path)
        return stamp is not None and stamp != self._seen


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _check(path: Path, lock: SoftFileLease) -> None:
    """Raises FolderInUseError if another program has taken the lock over."""
    for pause in _MOMENTS:  # one that tries to take it over may move it aside for a moment
        time.sleep(pause)
        owner = lock.owner
        if lock.compromise is None and owner is not None and owner.token == lock.token:
            return
    holder = _holder(path)
    why = f"{holder} has taken it over" if holder else "its file is gone, or could not be renewed"
    raise FolderInUseError(
        f"the lock of {path.parent} was lost while this program did not run or could not reach its files: "
        f"{why}. Nothing more is written; the same command goes on once the folder is free",
        path.parent,
    )


def _in_use(path: Path) -> str:
    if holder := _holder(path):
        return (
            f"{path.parent} is in use by {holder}: two programs cannot write into one folder. Wait until "
            "it has ended, end it, or use another folder"
        )
    return (
        f"{path.parent} is locked by {path.name}, which names no program: a machine that crashed may have "
        "left it. If no program writes into the folder, delete that file"
    )


def _holder(path: Path) -> str:
    """Who holds a lock, for messages; "" if its file does not say."""
    try:
        lines = path.read_text(errors="replace")[:2000].splitlines()
    except OSError:
        return ""
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    if not {"pid", "host"} <= values.keys():
        return ""
    host = values["host"].split("?")[0]
    since = f" since {values['since']}" if "since" in values else ""
    this = " (this one)" if values["pid"] == str(os.getpid()) else ""
    return f"process {values['pid']}{this} on {host}{since}"
