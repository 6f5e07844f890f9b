"""GLUE splits from TensorFlow Datasets (TFDS), an optional package."""

from __future__ import annotations

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
    builder = glue.Glue(config=task.tfds_config, data_dir=data_dir)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # TFDS raises many types: network, checksum, disk, archive.
        raise OSError(
            f"TFDS could not prepare glue/{task.tfds_config} in {builder.data_dir} "
            f"({type(error).__name__}: {error}). Without access to the download site, set "
            f"config.data.source=FOLDER. {HOW_TO_GET}"
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
        raise InputError(
            f"TFDS glue/{task.tfds_config} names its classes {names}, expected {task.labels}. "
            "Use TFDS glue 2.0.0 or the original files."
        )
    records.sort(key=lambda record: int(record["idx"]))  # TFDS shuffles when it writes.
    highest = MAX_SCORE if task.regression else task.num_outputs - 1
    unlabelled = [r["idx"] for r in records if not 0 <= r["label"] <= highest]
    if unlabelled:
        raise InputError(
            f"TFDS glue/{task.tfds_config}/{split} in {builder.data_dir}: the example with idx "
            f"{unlabelled[0]} has no valid label. Delete that folder so that it is prepared again."
        )
    rows = [[r[feature].decode("utf-8") for feature in task.features] for r in records]
    return rows, [float(r["label"]) for r in records]
