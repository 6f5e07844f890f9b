"""GLUE examples, from TensorFlow Datasets or from the original TSV files.

Both sources give the same examples in the same order with the same class ids, so a result does not
depend on where the data came from.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from lora_jax.data import glue_tfds
from lora_jax.data.balanced import first_of_each
from lora_jax.data.glue_tasks import HOW_TO_GET, MAX_SCORE, Task
from lora_jax.data.text_files import folder, the_one
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.reading import read_text

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{0,40})?")  # as the scores of STS-B are written
_REMEDY = (
    "Download the file again; GLUE files are tab separated with no quoting, and test files have no "
    "labels"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Texts and labels of one split, in the order of the original file.

    Attributes:
        first: The sentence, or the first of the pair; N strings.
        second: The second of the pair; N strings, or None for a task on single sentences.
        labels: (N,) int32 class ids, or (N,) float32 scores for regression.

    Raises:
        ValueError: The lengths differ.
    """

    first: list[str]
    second: list[str] | None
    labels: Int[np.ndarray, ...] | Float[np.ndarray, ...]

    def __post_init__(self) -> None:
        second = len(self.first) if self.second is None else len(self.second)
        if self.labels.shape != (len(self.first),) or second != len(self.first):
            raise InputError(
                f"Examples need one label and one text (or pair) a row: got {len(self.first)} "
                f"first texts, {second} second texts and labels of shape {self.labels.shape}."
            )

    def __len__(self) -> int:
        return len(self.first)

    def take(self, limit: int) -> Examples:
        """Returns the first `limit` examples in order, or all if `limit` is not positive."""
        return self.subset(range(min(limit, len(self)))) if limit > 0 else self

    def balanced(self, limit: int, names: Sequence[str]) -> Examples:
        """Returns the first examples of each class, `limit` in all and as many of each, in order.

        So are the small training sets of the paper's Table 16; see `balanced.first_of_each`.

        Args:
            limit: Number of examples; if it is not positive, as many as the rarest class has of each.
            names: Of all classes, by id.

        Raises:
            ValueError: The labels are scores, or a class has too few examples.
        """
        if self.labels.dtype.kind == "f":
            raise InputError(
                "Balanced examples need classes, and these labels are scores: leave data.balanced out"
            )
        return self.subset(first_of_each(self.labels, limit, names))

    def subset(self, indices: Sequence[int] | Int[np.ndarray, " _"]) -> Examples:
        """Returns the examples at `indices`, in the order of `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        second = None if self.second is None else [self.second[i] for i in rows]
        return Examples([self.first[i] for i in rows], second, self.labels[rows])


def read(task: Task, split: str, source: str) -> Examples:
    """Reads one labelled split of a task.

    Args:
        task: One of `TASKS`.
        split: 'train' or one of `task.evaluations`.
        source: 'tfds', 'tfds:DATA_DIR', or a folder of the original GLUE files: a folder that holds
            the task's folder, a data folder that holds glue/ with it, or the task's folder itself.

    Returns:
        The examples, in the order of the original file.

    Raises:
        FileNotFoundError: The folder or the file is not there.
        ValueError: The split is unknown or has no public labels, or the data are malformed.
        ImportError: `source` is TFDS and a package for it is missing.
        OSError: TFDS could not prepare or read the task.
    """
    valid = ("train", *task.evaluations)
    if split.startswith("test"):
        raise InputError(
            f"GLUE test labels are not public, so {task.name}/{split} cannot be trained on or "
            f"scored. Use one of: {', '.join(valid)}."
        )
    if split not in valid:
        raise InputError(f"{task.name} has no split {split!r}. Use one of: {', '.join(valid)}.")
    if source == "tfds" or source.startswith("tfds:"):
        rows, labels = glue_tfds.read_rows(task, split, source.partition(":")[2] or None)
        return _examples(task, rows, labels)
    name = ("train" if split == "train" else split.replace("validation", "dev")) + ".tsv"
    return _read_file(task, _find(task, name, folder(source)))


def _find(task: Task, name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the path of the task's file under `root`, or raises FileNotFoundError."""
    paths = [root / task.folder / name, root / "glue" / task.folder / name]
    if root.name == task.folder:  # Only then, so that another task's files are never taken.
        paths.insert(0, root / name)
    there = [path for path in paths if path.is_file()]
    if there:
        return the_one(there)
    if root.is_dir():
        names = sorted(p.name for p in (*root.iterdir(), *paths[0].parent.glob("*.tsv")))
        holds = f"{root} holds: {', '.join(names[:20]) or 'nothing'}"
    else:
        holds = f"{root} is not a folder"
    raise MissingFileError(
        f"No GLUE file {task.folder}/{name}. Looked for: {', '.join(map(str, paths))}; {holds}. "
        f"{HOW_TO_GET}"
    )


def _read_file(task: Task, path: pathlib.Path) -> Examples:
    """Reads one original TSV file: tab separated, no quoting, lines end at a newline only."""
    text = read_text(path, remedy=_REMEDY)
    # str.splitlines would also split at characters such as U+0085, which occur inside sentences.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    header = list(task.header) or lines[0].split("\t")
    start = 0 if task.header else 1
    wanted = (*task.columns, task.label_column)
    if not set(wanted) <= set(header):
        raise _malformed(path, 1, f"the header {header}", f"a header with {', '.join(wanted)}")
    if twice := [column for column in wanted if header.count(column) > 1]:
        found = f"several columns {', '.join(twice)} in the header {header}"
        raise _malformed(path, 1, found, "one of each")
    places = [header.index(column) for column in wanted]

    rows: list[list[str]] = []
    labels: list[float] = []
    skipped = 0
    for number, line in enumerate(lines[start:], start + 1):
        row = line.split("\t")
        if len(row) < len(header) and task.skip_short_rows:
            skipped += 1
            continue
        if len(row) != len(header):
            columns = f"{len(row)} tab-separated columns in {line[:60]!r}"
            raise _malformed(path, number, columns, f"{len(header)} columns")
        *texts, label = (row[place] for place in places)
        rows.append(texts)
        labels.append(_label(task, label, path, number))
    if not rows:
        raise _malformed(path, start + 1, "no rows", f"labelled rows of {task.name}")
    if skipped > 10 + len(rows) // 100:  # The official files have a handful in 100,000 rows.
        many = f"{skipped:,} rows with too few columns beside {len(rows):,} whole ones"
        raise _malformed(path, start + 1, many, f"{len(header)} tab-separated columns")
    if skipped:
        logging.getLogger(__name__).warning(
            "%s: dropped %d rows cut by newlines inside a question; %d rows are left.",
            path,
            skipped,
            len(rows),
        )
    return _examples(task, rows, labels)


def _label(task: Task, text: str, path: pathlib.Path, number: int) -> float:
    """Returns the class id or score that `text` stands for, or raises ValueError."""
    if not task.regression:
        if text in task.label_values:
            return task.label_values.index(text)
        expected = f"one of {', '.join(task.label_values)}"
    else:
        expected = f"a number from 0 to {MAX_SCORE:g}"
        score = float(text) if _NUMBER.fullmatch(text) else math.nan
        if 0.0 <= score <= MAX_SCORE:
            return score
    raise _malformed(path, number, f"{task.label_column} {text!r}", expected)


def _malformed(path: pathlib.Path, line: int, actual: str, expected: str) -> FileError:
    """The error for a bad file: where it is bad, what is there and what should be."""
    return FileError(path, f"line {line}", actual, expected, _REMEDY)


def _examples(task: Task, rows: Sequence[Sequence[str]], labels: Sequence[float]) -> Examples:
    """Makes Examples of rows of one or two texts."""
    second = [row[1] for row in rows] if len(task.columns) == 2 else None
    dtype = np.float32 if task.regression else np.int32
    return Examples([row[0] for row in rows], second, np.asarray(labels, dtype=dtype))
