"""The problem of a user's own tables: `experiments.classify` trains on it, `experiments.predict` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runs.classification import Outputs, Problem
from experiments.runs.column_fields import named_by
from lora_jax import adapter_description
from lora_jax.adapters import DESCRIPTION, adapter_folder
from lora_jax.data import held_out, labelled_texts, labels
from lora_jax.data.labelled_texts import Columns, LabelledTexts
from lora_jax.data.labels import Labels
from lora_jax.errors import InputError, brief
from lora_jax.metrics import classification as metrics

HELD_OUT = "held_out"  # name of the split
_UNEVEN = 5  # times that the largest class has the rows of the smallest, from which on it is noted


def columns_of(config: ConfigDict) -> Columns:
    """The columns that a config names; InputError if one has two uses."""
    data = config.data
    columns = Columns(data.text, data.pair, data.label)
    names = [*columns.of_texts, columns.label]
    if len(set(names)) < len(names):
        raise InputError(
            f"config.data: text, pair and label must be different columns, got {names}"
        )
    return columns


def headline(config: ConfigDict) -> str:
    """The score that chooses the best epoch; InputError if it is none of these labels."""
    known = metrics.NUMBERS[:2] if config.labels == "numbers" else metrics.CLASSES
    chosen = known[0] if config.headline == "auto" else config.headline
    if chosen not in known:
        raise InputError(
            f"config.headline is {chosen!r}, but config.labels is {config.labels!r}, whose scores are "
            f"{', '.join(known)}"
        )
    return str(chosen)


def scores(kind: Labels, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The scores of a model's outputs.

    Args:
      kind: what the labels are.
      outputs: of the model, (rows, outputs).
      targets: class ids, or numbers as the files have them.
    """
    if kind.regression:
        return metrics.number_scores(kind.numbers(outputs), np.asarray(targets, np.float64))
    return metrics.class_scores(outputs, np.asarray(targets, np.int32))


def report(kind: Labels, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """What a record has of classes besides scores: the confusion matrix, and each class by itself."""
    predictions, count = outputs.argmax(axis=-1), len(kind.classes)
    truth = np.asarray(targets, np.int32)
    each = metrics.by_class(predictions, truth, count)
    return {
        "confusion_matrix": metrics.confusion_matrix(predictions, truth, count).tolist(),
        "by_class": dict(zip(kind.classes, each, strict=True)),
    }


def labels_of_adapter(folder: Path) -> Labels:
    """The labels that an adapter of experiments.classify was trained on, from its notes.

    Raises:
      MissingFileError, FileError: no adapter, or one of another command.
    """
    record = adapter_description.read(adapter_folder(folder) / DESCRIPTION)
    return labels.from_json(record.record("notes").record("labels"))


def problem(config: ConfigDict) -> Problem:
    """Reads the tables of a config.

    Raises:
      MissingFileError, FileError, OSError: see `labelled_texts.read`; a label that is none of the classes.
      InputError: no file, or labels of which nothing can be learned.
    """
    data, columns, best = config.data, columns_of(config), headline(config)
    if not data.train and not (config.eval_only and data.held_out):
        raise InputError("config.data.train is empty: name the file of your table")
    if data.classes and config.labels == "numbers":
        raise InputError("config.data.classes names classes, but config.labels is 'numbers'")
    files = tuple(data.train) if not (config.eval_only and data.held_out) else ()
    train = _read(files, columns) if files else None
    kind = labels_of_adapter(Path(config.adapter)) if config.eval_only else _labels(config, train)
    given = _read(data.held_out, columns) if data.held_out else None
    for rows in (train, given):
        if rows is not None:
            rows.encoded(kind)  # before the split, so that the first of all bad labels is told
    notes = {} if train is None else {"train": _notes(train, kind)}
    if given is None:
        assert train is not None
        train, given = _split(train, kind, data)
        notes[HELD_OUT] = _notes_held_out(given, kind)
    elif train is not None:
        notes[HELD_OUT] = "; ".join(
            filter(None, [_notes_held_out(given, kind), _shared(train, given)])
        )
    if train is not None:
        train = _limited(train, kind, data.max_examples, data.split_seed)
    given = _limited(given, kind, data.max_eval_examples, data.split_seed)
    targets = np.asarray(given.encoded(kind))
    return Problem(
        name=config.task,
        num_outputs=kind.num_outputs,
        regression=kind.regression,
        headline=best,
        train=None if train is None or config.eval_only else train.examples(kind),
        evaluations={HELD_OUT: given.examples(kind)},
        score=lambda outputs, _: scores(kind, outputs[HELD_OUT], targets),
        report=None if kind.regression else partial(_report, kind, targets),
        description=_description(kind, columns, train, given),
        notes={name: note for name, note in notes.items() if note},
    )


def _read(files: Sequence[str], columns: Columns) -> LabelledTexts:
    flags = {name: f"--config.data.{name}=COLUMN" for name in ("text", "pair", "label")}
    with named_by({flag: [getattr(columns, name)] for name, flag in flags.items()}):
        return labelled_texts.read(files, columns)


def _report(kind: Labels, targets: np.ndarray, outputs: Outputs) -> dict[str, Any]:
    return report(kind, outputs[HELD_OUT], targets)


def _labels(config: ConfigDict, train: LabelledTexts | None) -> Labels:
    """What the labels of the training rows are."""
    assert train is not None
    if config.labels == "numbers":
        return labels.found_numbers(train.encoded(Labels()))
    if not config.data.classes:
        return labels.found_classes(train.counts)
    return labels.given_classes(config.data.classes)


def _strata(rows: LabelledTexts, kind: Labels) -> list[Any]:
    return held_out.strata_of(np.asarray(rows.encoded(kind))) if kind.regression else rows.labels


def _split(
    rows: LabelledTexts, kind: Labels, data: ConfigDict
) -> tuple[LabelledTexts, LabelledTexts]:
    """The rows to train on, and those held out."""
    marked = held_out.held_out(rows.keys, _strata(rows, kind), data.held_out_share, data.split_seed)
    if not marked.any():
        raise InputError(
            f"{len(rows):,} rows are too few to hold some out: every class needs two different texts. Add "
            "rows, or name a file of held-out rows (config.data.held_out)"
        )
    return rows.subset(np.flatnonzero(~marked)), rows.subset(np.flatnonzero(marked))


def _limited(rows: LabelledTexts, kind: Labels, limit: int, seed: int) -> LabelledTexts:
    return rows.subset(held_out.limited(rows.keys, _strata(rows, kind), limit, seed))


def _description(
    kind: Labels, columns: Columns, train: LabelledTexts | None, given: LabelledTexts
) -> dict[str, Any]:
    """What records and adapters say of the data; the baseline is the commonest class, or the mean."""
    names = {"text": columns.text, "pair": columns.pair, "label": columns.label}
    result: dict[str, Any] = {"columns": names, "labels": kind.to_json()}
    splits = {"train": train, HELD_OUT: given}
    result["rows"] = {split: len(rows) for split, rows in splits.items() if rows is not None}
    targets = np.asarray(given.encoded(kind))
    if kind.regression:
        constant = metrics.number_scores(np.full(len(given), kind.mean), targets)
        return {**result, "baseline": {"answer": kind.mean, **constant}}
    counts = {s: rows.counts for s, rows in splits.items() if rows is not None}
    result["counts"] = {
        s: {name: c.get(name, 0) for name in kind.classes} for s, c in counts.items()
    }
    of_train = result["counts"]["train" if train is not None else HELD_OUT]
    common = max(kind.classes, key=lambda name: of_train[name])
    always = np.zeros((len(given), len(kind.classes)))
    always[:, kind.classes.index(common)] = 1
    return {**result, "baseline": {"answer": common, **scores(kind, always, targets)}}


def _notes(train: LabelledTexts, kind: Labels) -> str:
    """What a reader should know of the training rows: repeated texts, contradictions, uneven classes."""
    notes = []
    same, other = train.repeated()
    if same:
        notes.append(f"{same:,} rows repeat a text with its label")
    if other and not kind.regression:
        before, row = other[0]
        notes.append(
            f"{len(other):,} rows repeat a text with another label, such as "
            f"{brief(train.labels[row], 40)} in {train.where(row)}, which is "
            f"{brief(train.labels[before], 40)} in {train.where(before)}"
        )
    if not kind.regression:
        counts = [(train.counts.get(name, 0), name) for name in kind.classes]
        (least, rare), (most, common) = min(counts), max(counts)
        if most >= _UNEVEN * least:
            notes.append(
                f"the classes are uneven: {brief(common, 40)} has {most:,} of {len(train):,} rows, "
                f"{brief(rare, 40)} has {least:,}; look at macro F1 rather than accuracy (to choose the best "
                "epoch by it: config.headline=macro_f1)"
            )
    return "; ".join(notes)


def _notes_held_out(given: LabelledTexts, kind: Labels) -> str:
    missing = [name for name in kind.classes if name not in given.counts]
    if not missing:
        return ""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"no rows of {', '.join(brief(name, 40) for name in missing[:5])}{more}"


def _shared(train: LabelledTexts, given: LabelledTexts) -> str:
    seen = set(train.keys)
    count = sum(key in seen for key in given.keys)
    return f"{count:,} of {len(given):,} rows have a text of the training rows" if count else ""
