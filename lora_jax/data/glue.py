"""GLUE examples, from TensorFlow Datasets or from the original TSV files.

Both sources give the same examples in the same order with the same class ids, so a result does not
depend on where the data came from.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from lora_jax.data.glue_tasks import TASKS, Task, task

__all__ = ["TASKS", "Examples", "Task", "read", "task"]

_MAX_SCORE = 5.0  # STS-B similarity runs from 0 to 5.

_HOW_TO_GET = (
    "Two sources work: source='tfds' (TensorFlow Datasets downloads the task), or "
    "config.data.source=FOLDER with the original GLUE files from https://gluebenchmark.com/tasks "
    "unpacked in it, one folder a task (FOLDER/SST-2/train.tsv, FOLDER/SST-2/dev.tsv)."
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
    labels: np.ndarray

    def __post_init__(self) -> None:
        second = len(self.first) if self.second is None else len(self.second)
        if self.labels.shape != (len(self.first),) or second != len(self.first):
            raise ValueError(
                f"Examples need one label and one text (or pair) a row: got {len(self.first)} "
                f"first texts, {second} second texts and labels of shape {self.labels.shape}."
            )

    def __len__(self) -> int:
        return len(self.first)

    def take(self, limit: int) -> Examples:
        """Returns the first `limit` examples in order, or all when `limit` is not positive."""
        return self.subset(range(min(limit, len(self)))) if limit > 0 else self

    def subset(self, indices: Sequence[int] | np.ndarray) -> Examples:
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
        raise ValueError(
            f"GLUE test labels are not public, so {task.name}/{split} cannot be trained on or "
            f"scored. Use one of: {', '.join(valid)}."
        )
    if split not in valid:
        raise ValueError(f"{task.name} has no split {split!r}. Use one of: {', '.join(valid)}.")
    if source == "tfds" or source.startswith("tfds:"):
        return _read_tfds(task, split, source.partition(":")[2] or None)
    name = ("train" if split == "train" else split.replace("validation", "dev")) + ".tsv"
    return _read_file(task, _find(task, name, pathlib.Path(source).expanduser()))


def _find(task: Task, name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the path of the task's file under `root`, or raises FileNotFoundError."""
    paths = [root / task.folder / name, root / "glue" / task.folder / name]
    if root.name == task.folder:  # Only then, so that another task's files are never taken.
        paths.insert(0, root / name)
    for path in paths:
        if path.is_file():
            return path
    if root.is_dir():
        found = sorted(p.name for p in (*root.iterdir(), *paths[0].parent.glob("*.tsv")))
        there = f"{root} holds: {', '.join(found[:20]) or 'nothing'}"
    else:
        there = f"{root} is not a folder"
    raise FileNotFoundError(
        f"No GLUE file {task.folder}/{name}. Looked for: {', '.join(map(str, paths))}; {there}. "
        f"{_HOW_TO_GET}"
    )


def _read_file(task: Task, path: pathlib.Path) -> Examples:
    """Reads one original TSV file: tab separated, no quoting, lines end at a newline only."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise _malformed(path, number, "bytes that are not UTF-8", "UTF-8 text") from error
    # str.splitlines would also split at characters such as U+0085, which occur inside sentences.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    header = list(task.header) or lines[0].split("\t")
    start = 0 if task.header else 1
    wanted = (*task.columns, task.label_column)
    if not set(wanted) <= set(header):
        raise _malformed(path, 1, f"the header {header}", f"a header with {', '.join(wanted)}")
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
            found = f"{len(row)} tab-separated columns in {line[:60]!r}"
            raise _malformed(path, number, found, f"{len(header)} columns")
        *texts, label = (row[place] for place in places)
        rows.append(texts)
        labels.append(_label(task, label, path, number))
    if not rows:
        raise _malformed(path, start + 1, "no rows", f"labelled rows of {task.name}")
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
        expected = f"a number from 0 to {_MAX_SCORE:g}"
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if 0.0 <= score <= _MAX_SCORE:
            return score
    raise _malformed(path, number, f"{task.label_column} {text!r}", expected)


def _malformed(path: pathlib.Path, line: int, found: str, expected: str) -> ValueError:
    return ValueError(
        f"{path}, line {line}: found {found}, expected {expected}. Download the file again; GLUE "
        "files are tab separated with no quoting, and test files have no labels."
    )


def _examples(task: Task, rows: Sequence[Sequence[str]], labels: Sequence[float]) -> Examples:
    """Builds Examples from rows of one or two texts."""
    second = [row[1] for row in rows] if len(task.columns) == 2 else None
    dtype = np.float32 if task.regression else np.int32
    return Examples([row[0] for row in rows], second, np.asarray(labels, dtype=dtype))


def _read_tfds(task: Task, split: str, data_dir: str | None) -> Examples:
    """Reads a split through TFDS, in the random-access format that needs no TensorFlow."""
    try:
        import importlib_resources  # noqa: F401  (TFDS uses it without declaring it.)
        from tensorflow_datasets.text import glue
    except ImportError as error:
        raise ImportError(
            f"source='tfds' needs packages that cannot be imported ({error}). Install them with "
            "`pip install tensorflow-datasets array_record importlib_resources`, or set "
            "config.data.source=FOLDER with the original GLUE files."
        ) from error
    builder = glue.Glue(config=task.tfds_config, data_dir=data_dir)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # TFDS raises many types: network, checksum, disk, archive.
        raise OSError(
            f"TFDS could not prepare glue/{task.tfds_config} in {builder.data_dir} "
            f"({type(error).__name__}: {error}). Without access to the download site, set "
            f"config.data.source=FOLDER. {_HOW_TO_GET}"
        ) from error
    try:
        stored = builder.as_data_source(split)
        records = stored.__getitems__(range(len(stored)))  # 4 times as fast as one by one.
    except NotImplementedError as error:
        raise OSError(
            f"glue/{task.tfds_config} in {builder.data_dir} was prepared in a format that cannot "
            "be read without TensorFlow. Delete that folder or use source='tfds:OTHER_DIR', so "
            "that it is prepared again as array_record."
        ) from error
    names = () if task.regression else tuple(builder.info.features["label"].names)
    if names != task.labels:
        raise ValueError(
            f"TFDS glue/{task.tfds_config} names its classes {names}, expected {task.labels}. "
            "Use TFDS glue 2.0.0 or the original files."
        )
    records.sort(key=lambda record: int(record["idx"]))  # TFDS shuffles when it writes.
    highest = _MAX_SCORE if task.regression else task.num_outputs - 1
    bad = [r["idx"] for r in records if not 0 <= r["label"] <= highest]
    if bad:
        raise ValueError(
            f"TFDS glue/{task.tfds_config}/{split} in {builder.data_dir}: the example with idx "
            f"{bad[0]} has no valid label. Delete that folder so that it is prepared again."
        )
    rows = [[r[feature].decode("utf-8") for feature in task.features] for r in records]
    return _examples(task, rows, [r["label"] for r in records])
