"""What is predicted: rows of a file or a line, and the answers to them as rows of text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.column_fields import of_run
from experiments.runs.text_tables import csv_text
from lora_jax.data import labelled_texts
from lora_jax.data.glue import Examples
from lora_jax.data.labelled_texts import Columns, LabelledTexts
from lora_jax.data.labels import Labels
from lora_jax.data.tables import MissingColumnError, Table
from lora_jax.errors import FileError
from lora_jax.files import to_json
from lora_jax.reading import read_text

_OURS = ("prediction", "probability", "probabilities", "label", "correct", "error")


def read_input(path: Path, columns: Columns) -> LabelledTexts:
    """The rows of a file to predict.

    Raises:
      MissingFileError, FileError, OSError: see `labelled_texts.read`.
    """
    if path.suffix.lower() != ".txt":
        try:
            return labelled_texts.read([path], columns, labelled=False)
        except MissingColumnError as error:
            raise error.advised(of_run(columns.of_texts)) from None
    lines = [line.removesuffix("\r") for line in read_text(path).removesuffix("\n").split("\n")]
    rows = [
        texts_of_line(line, columns, path, f"line {number}") for number, line in enumerate(lines, 1)
    ]
    table = Table(path, columns.of_texts, rows, list(range(1, len(rows) + 1)), "line")
    return labelled_texts.of_table(table, columns, labelled=False)


def texts_of_line(line: str, columns: Columns, path: str | Path, where: str) -> dict[str, Any]:
    """The texts of a line by column; FileError if a pair has no tab between, or more."""
    texts = line.split("\t") if columns.pair else [line]
    if len(texts) != len(columns.of_texts):
        raise FileError(path, where, f"{len(texts)} texts", "two with a tab between them")
    return dict(zip(columns.of_texts, texts, strict=True))


def answers(
    kind: Labels, columns: Columns, examples: Examples, outputs: np.ndarray, known: list[Any] | None
) -> list[dict[str, Any]]:
    """A row of output for every example: its texts, the answer, and the label where it is known.

    Args:
      kind: what the outputs mean.
      columns: names of the texts.
      examples: that were predicted.
      outputs: of the model.
      known: class ids or numbers; None where there are no labels.
    """
    texts = [examples.first] if examples.second is None else [examples.first, examples.second]
    names = [f"{name} (input)" if name in _OURS else name for name in columns.of_texts]
    rows: list[dict[str, Any]] = [
        dict(zip(names, values, strict=True)) for values in zip(*texts, strict=True)
    ]
    if kind.regression:
        for row, number in zip(rows, kind.numbers(outputs), strict=True):
            row["prediction"] = float(number)
    else:
        for row, of_row in zip(rows, probabilities(outputs), strict=True):
            best = int(of_row.argmax())
            row |= {"prediction": kind.classes[best], "probability": float(of_row[best])}
            row["probabilities"] = dict(zip(kind.classes, of_row.tolist(), strict=True))
    for row, label in zip(rows, known or [], strict=False):
        if kind.regression:
            row |= {"label": label, "error": row["prediction"] - label}
        else:
            name = kind.classes[int(label)]
            row |= {"label": name, "correct": row["prediction"] == name}
    return rows


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """The probabilities (rows, classes) that a model's outputs stand for."""
    logits = np.asarray(outputs, np.float64)
    shares: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def as_text(rows: Iterable[dict[str, Any]], suffix: str) -> str:
    """Rows of output in the format of a suffix: .jsonl, or .csv with a column for each probability."""
    if suffix == ".jsonl":
        return "".join(to_json(row, indent=None) + "\n" for row in rows)
    flat = []
    for row in rows:
        shares = {f"probability of {name}": p for name, p in row.get("probabilities", {}).items()}
        flat.append({**{k: v for k, v in row.items() if k != "probabilities"}, **shares})
    return csv_text(flat)
