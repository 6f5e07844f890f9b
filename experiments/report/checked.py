"""Checks a run record before the report reads it: its digest, and every field that the report takes.

Records of earlier versions have no digest and lack newer fields; what they have is checked all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_jax import run_files
from lora_jax.data.glue_tasks import TASKS
from lora_jax.errors import brief
from lora_jax.ranges import finite
from lora_jax.reading import Record, read_object

_REMEDY = "Put the file back from a copy, or leave the folder out"
_SHARES = ("accuracy", "f1", "matthews", "pearson", "spearman")  # from -1 to 1, on GLUE
_COUNTS = ("max_length", "max_examples", "max_eval_examples", "max_prompts", "order_seed")


def read(path: Path) -> Record:
    """The record in a result.json.

    Raises:
      MissingFileError, FileError: it is no JSON object, or not what the run wrote (its digest differs).
    """
    record = read_object(path, _REMEDY)
    run_files.check_record(path, record.values)
    return record


def check(record: Record) -> None:
    """Checks what the report reads of a run of experiments.glue or experiments.nlg.

    Raises:
      FileError: a field is missing, of another type, or can be no result; it names file and field.
    """
    for name in ("task", "method", "model"):
        record.get(name, str)
    record.get("split", str, "")
    parameters = record.record("parameters")
    for name in ("trainable", *({"head"} & parameters.values.keys())):
        parameters.integer(name, 0, 2**62)
    config = record.record("config")
    _check_config(config)
    _check_seeds(record, config)
    _check_scores(record)
    for name in ("missing", "notes"):
        if name in record.values:
            record.text_by_name(name)
    if "device" in record.values:
        record.record("device").get("kind", str, "")
        record.record("device").get("count", int, 1)
    if record.values.get("seconds") is not None:
        record.get("seconds", float)
    if "inputs" in record.values:
        record.text_by_name("inputs")
    if "layers" in record.values:
        _check_layers(record)


def _check_config(config: Record) -> None:
    method = config.record("method")
    method.get("name", str)
    for name in ("alpha", "dropout", "std", "rank"):
        if method.values.get(name) is not None:
            method.get(name, float)
    for name in ("scaling", "init", "bias"):
        method.get(name, str, "")
    data = config.record("data")
    for name in _COUNTS:
        if data.values.get(name) is not None:
            data.integer(name, 0)
    for name, least in (("epochs", 0), ("batch_size", 1), ("accumulate", 1)):
        if name in config.values:
            config.integer(name, least)
    if config.values.get("epochs"):
        config.get("learning_rate", float)
    config.get("init_adapter", str, "")


def _check_seeds(record: Record, config: Record) -> None:
    seeds = record.record("seeds")
    if not seeds.values:
        raise record.error("seeds", "{}", "a record for each seed")
    for name in seeds.values:
        seed = seeds.record(name)
        for count in ("examples", "best_epoch"):
            if seed.values.get(count) is not None:
                seed.integer(count, 0, 2**62)
        if "examples" in seed.values:  # it was trained
            config.integer("epochs", 1)


def _check_scores(record: Record) -> None:
    seeds = len(record.get("seeds", dict))
    of_texts = record.get("split", str, "") != ""
    for which in ("test", "best") if of_texts else ("best",):
        if which == "best" and of_texts and which not in record.values:  # nothing was trained
            continue
        scores = record.record(which)
        for metric, spread in scores.values.items():
            if spread:
                unit = not of_texts and record.values["task"] in TASKS and metric != "loss"
                _check_values(scores.record(metric), seeds, unit and metric.startswith(_SHARES))


def _check_values(spread: Record, seeds: int, is_share: bool) -> None:
    """Checks one score of all seeds; null is that of a seed that diverged."""
    values = spread.get("values", list)
    if len(values) != seeds:
        raise spread.error("values", f"{len(values)} values", f"one for each of {seeds} seeds")
    for number, value in enumerate(values):
        known: Any = 0.0 if value is None else finite(value)
        if known is None or (is_share and abs(known) > 1):
            expected = "a number from -1 to 1" if is_share else "a finite number"
            raise spread.error(f"values[{number}]", brief(value, 60), expected)


def _check_layers(record: Record) -> None:
    for number, layer in enumerate(record.get("layers", list)):
        if not isinstance(layer, dict):
            raise record.error(f"layers[{number}]", brief(layer, 60), "an object")
        inner = Record(record.path, layer, f"layers[{number}].", _REMEDY)
        inner.get("path", str)
        inner.integer("rank")
        inner.strings("parts")
