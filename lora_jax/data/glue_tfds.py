"""GLUE splits from TensorFlow Datasets (TFDS), an optional package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_jax.data.glue_tasks import HOW_TO_GET, MAX_SCORE, Task
from lora_jax.errors import InputError

Rows = tuple[list[list[str]], list[float]]


def read_rows(task: Task, split: str, data_dir: str | None) -> Rows:
    """Reads a split through TFDS, in the random-access format that needs no TensorFlow.

    Args:
        task: One of `glue_tasks.TASKS`.
        split: A split with public labels.
        data_dir: TFDS's folder of prepared data sets; None for its default.

    Returns:
        The one or two texts of every example, and its class id or score, in the order of the
        original file.

    Raises:
        ImportError: A package that TFDS needs is missing.
        OSError: TFDS could not prepare or read the task.
        ValueError: The classes are not those expected, or an example has no valid label.
    """
    try:
        import importlib_resources  # noqa: F401  (TFDS uses it without declaring it.)
        from tensorflow_datasets.text import glue
    except ImportError as error:
        raise ImportError(
            f"source='tfds' needs packages that cannot be imported ({error}). Install them with "
            "`pip install tensorflow-datasets array_record importlib_resources`, or set "
            "config.data.source=FOLDER with the original GLUE files."
        ) from error
    builder = _prepared(glue.Glue, task, data_dir)
    place = f"glue/{task.tfds_config} in {builder.data_dir}"
    try:
        stored = builder.as_data_source(split)
        records = stored.__getitems__(range(len(stored)))  # 4 times as fast as one by one.
        names = () if task.regression else tuple(builder.info.features["label"].names)
        records.sort(key=lambda record: int(record["idx"]))  # TFDS shuffles when it writes.
        rows = [[r[feature].decode("utf-8") for feature in task.features] for r in records]
        labels = [float(r["label"]) for r in records]
    except NotImplementedError as error:
        raise OSError(
            f"{place} was prepared in a format that cannot "
            "be read without TensorFlow. Delete that folder or use source='tfds:OTHER_DIR', so "
            "that it is prepared again as array_record."
        ) from error
    except Exception as error:  # Damaged records raise what array_record and TFDS happen to raise.
        raise OSError(
            f"TFDS could not read the split {split} of {place} ({type(error).__name__}: {error}). "
            "Delete that folder so that it is prepared again."
        ) from error
    if names != task.labels:
        raise InputError(
            f"TFDS glue/{task.tfds_config} names its classes {names}, expected {task.labels}. "
            "Use TFDS glue 2.0.0 or the original files."
        )
    highest = MAX_SCORE if task.regression else task.num_outputs - 1
    unlabelled = [r["idx"] for r in records if not 0 <= r["label"] <= highest]
    if unlabelled:
        raise InputError(
            f"TFDS glue/{task.tfds_config}/{split} in {builder.data_dir}: the example with idx "
            f"{unlabelled[0]} has no valid label. Delete that folder so that it is prepared again."
        )
    if not rows:
        raise InputError(f"TFDS {place} has no row in the split {split}. Delete that folder.")
    return rows, labels


def _prepared(make: Callable[..., Any], task: Task, data_dir: str | None) -> Any:
    """The builder of a task whose data are on disk; downloads and prepares them if they are not."""
    where = data_dir or "the default folder of TFDS"
    try:
        builder = make(config=task.tfds_config, data_dir=data_dir)
        where = builder.data_dir
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # TFDS raises many types: network, checksum, disk, archive.
        raise OSError(
            f"TFDS could not prepare glue/{task.tfds_config} in {where} "
            f"({type(error).__name__}: {error}). Without access to the download site, set "
            f"config.data.source=FOLDER. {HOW_TO_GET}"
        ) from error
    return builder
