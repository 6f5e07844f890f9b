"""The file in which results are sent on: run records as they were written, by item.

    {"format": "lora_jax results 1", "items": {"table_2/minilm/sst2/lora": {
        "made": "2026-12-01", "on": "AMD EPYC, 2 cores used of 2", "records": {".": {a run's result.json}}}}}

`experiments.report` takes it beside folders of runs. Every record has a digest of its own content, so that
what was changed on the way is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_jax import run_files
from lora_jax.errors import FileError
from lora_jax.files import write_json
from lora_jax.reading import Record, read_object

NAME = "reproduced.json"
FORMAT = "lora_jax results 1"
_REMEDY = (
    "Make it again: the same command of experiments.reproduce writes it from the finished runs"
)


def write(path: Path, items: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the file.

    Args:
      path: of the file.
      items: by name; `records` of one has its run records by folder, `.` for a run alone.
    """
    write_json(path, {"format": FORMAT, "items": items})


def records(path: Path) -> Iterator[tuple[str, Record]]:
    """The run records of a file with their labels, `ITEM` or `ITEM/POINT`.

    Raises:
      FileError: it is no such file, or a record is not what a run wrote (its digest differs).
    """
    for name, item in _items(path):
        inside = item.record("records")
        if not inside.values:
            raise item.error("records", "{}", "the record of a run")
        for folder in inside.values:
            record = inside.record(folder)
            _check_digest(path, f"items.{name}.records.{folder}", record)
            yield name if folder == "." else f"{name}/{folder}", record


def _check_digest(path: Path, where: str, record: Record) -> None:
    """Raises FileError unless a record is what a run wrote; all that are sent have a digest of themselves."""
    found = "no digests"
    if run_files.KEY in record.values:
        try:
            run_files.check_record(path, record.values)
        except FileError:
            found = "content that differs from its digest"
        else:
            return
    raise FileError(path, where, found, "what the run wrote", _REMEDY)


def _items(path: Path) -> Iterator[tuple[str, Record]]:
    whole = read_object(path, _REMEDY)
    if whole.get("format", str) != FORMAT:
        raise whole.error("format", repr(whole.values["format"])[:60], repr(FORMAT))
    items = whole.record("items")
    for name in items.values:
        yield name, items.record(name)
