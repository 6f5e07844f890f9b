"""What a finished run has left: its record has digests of its files, checked when it is read back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lora_jax import files, locking
from lora_jax.digests import of_file
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.run_folder import RESULT, plain

KEY = "digests"
ADAPTER = "adapter"
MODEL = "model"
_NEEDED = (ADAPTER, MODEL)  # names of the folders that the results are
_FILES = (
    "metrics.jsonl", "predictions.jsonl", "predictions.txt", "references.txt", "answers.jsonl",
    "samples.jsonl",
)  # fmt: skip
_REMEDY = (
    "Put the file of that run back from a copy, or train again in another folder; for an adapter of which "
    "a whole copy lies in the run's folder this is done without a word from you"
)
_LOG = logging.getLogger(__name__)


def signed(folder: Path, record: Mapping[str, Any], made: str = ADAPTER) -> dict[str, Any]:
    """A run's record with digests of the files in its folder, and one of itself.

    Args:
      folder: of the run, with the files as they are now.
      record: what result.json is to hold.
      made: name of the folder, here or in those of the seeds, that is the result: ADAPTER or MODEL.
    """
    digests = {name: of_file(folder / name) for name in _names(folder, made)}
    whole = {**record, KEY: digests}
    digests[RESULT] = _of_record(whole)
    return whole


def _names(folder: Path, made: str) -> list[str]:
    """Files that a finished run has left for others to read, but for its record and its settings."""
    places = (folder, *sorted(folder.glob("seed_*")))
    found = [
        p for place in places for name in (f"{made}/*", *_FILES) for p in sorted(place.glob(name))
    ]
    return [path.relative_to(folder).as_posix() for path in found if path.is_file()]


def _of_record(record: Mapping[str, Any]) -> str:
    digests = {name: value for name, value in record[KEY].items() if name != RESULT}
    text = json.dumps(plain({**record, KEY: digests}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check(
    folder: Path,
    record: Mapping[str, Any],
    load: Callable[[Path], object] | None = None,
    *,
    held: bool = False,
) -> None:
    """Checks a finished run that is read back; call it on the first host alone.

    An adapter folder of the run that is damaged or gone is made again from a whole copy of it in the
    folder. Of damaged files that no result depends on it only tells.

    Args:
      folder: of the run.
      record: the content of its result.json.
      load: reads an adapter folder, for records of earlier versions, which have no digests.
      held: whether the caller has locked the folder; else it is locked to make an adapter again.

    Raises:
      FileError, MissingFileError: the record, or an adapter of which there is no whole copy.
      FolderInUseError: an adapter is to be made again, and another program works in the folder.
    """
    check_record(folder / RESULT, record)
    if KEY not in record:
        if load is not None:
            _check_adapters(folder, record, load, held)
        return
    digests = record[KEY]
    wrong = {
        name: error
        for name, expected in digests.items()
        if name != RESULT and (error := _wrong(folder / name, expected)) is not None
    }
    again: set[PurePosixPath] = set()
    for name, error in wrong.items():
        place = PurePosixPath(name).parent
        if place.name not in _NEEDED:
            _LOG.warning("%s. The results of the run do not depend on it", error)
        elif place not in again:
            if (copy := _copy(place, digests, wrong)) is None:
                raise error
            _copy_back(folder / copy, folder / place, folder, held)
            again.add(place)


def check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Checks a record by its own digest, whatever else is in its folder.

    Args:
      path: of result.json, for messages.
      record: its content; those of earlier versions have no digest.

    Raises:
      FileError: it is not what the run wrote.
    """
    if KEY not in record:
        return
    digests = record[KEY]
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise FileError(path, KEY, repr(digests)[:60], "an object of strings")
    if digests.get(RESULT) != _of_record(record):
        raise FileError(
            path, "", "content that is not what the run wrote (its digest differs)", "that content",
            "Put the file back from a copy, or delete it and give the same command again",
        )  # fmt: skip


def _wrong(path: Path, expected: str) -> InputError | None:
    """What is wrong with a file."""
    if not path.is_file():
        return MissingFileError(f"{path} is missing, which the finished run has left. {_REMEDY}")
    if of_file(path) == expected:
        return None
    return FileError(
        path, "", "content that is not what the run wrote (its digest differs)", "that content",
        _REMEDY,
    )  # fmt: skip


def _copy(
    place: PurePosixPath, digests: Mapping[str, str], wrong: Mapping[str, object]
) -> PurePosixPath | None:
    """Another folder of the run with the same content, which is whole."""
    content: dict[PurePosixPath, dict[str, str]] = {}
    for name, value in digests.items():
        path = PurePosixPath(name)
        content.setdefault(path.parent, {})[path.name] = value
    damaged = {PurePosixPath(name).parent for name in wrong}
    for other, inside in content.items():
        if inside == content[place] and other not in damaged:
            return other
    return None


def _copy_back(source: Path, target: Path, folder: Path, held: bool) -> None:
    with contextlib.nullcontext() if held else locking.taken(folder):
        kept = files.set_aside(target) if target.exists() else None
        files.replace_folder(source, target)
    what = f"was damaged (it is kept as {kept.name})" if kept else "was missing"
    _LOG.warning("%s %s; it is copied from %s, which is whole", target, what, source)


def _check_adapters(
    folder: Path, record: Mapping[str, Any], load: Callable[[Path], object], held: bool
) -> None:
    """The adapters of a run of an earlier version: whether they are there and can be read."""
    main, chosen, seeds = folder / ADAPTER, record.get(ADAPTER), record.get("seeds")
    others: dict[str, Path] = {}
    if isinstance(chosen, dict) and isinstance(seeds, dict):
        others = {seed: folder / f"seed_{seed}" / ADAPTER for seed in seeds}
    for path in others.values():
        load(path)
    try:
        load(main)
    except InputError:
        source = others.get(str(chosen.get("seed"))) if isinstance(chosen, dict) else None
        if source is None:
            raise
        _copy_back(source, main, folder, held)
