"""Rows of a user's own tables for classification: texts (or pairs) and labels, each with its place.

Empty texts and labels, and labels that are not known, are errors that name file, line and column.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lora_jax.data.glue import Examples
from lora_jax.data.labels import Labels, spelled
from lora_jax.data.tables import Table, read_table
from lora_jax.errors import FileError, brief


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a table.

    Attributes:
      text: the text, or the first of the pair.
      pair: the second of the pair; "" where texts are single.
      label: the label.
    """

    text: str
    pair: str = ""
    label: str = "label"

    @property
    def of_texts(self) -> tuple[str, ...]:
        """The columns of texts."""
        return (self.text, self.pair) if self.pair else (self.text,)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Rows of one or more files.

    Attributes:
      columns: that were read.
      texts: of every row, one or two.
      labels: of every row, as `labels.spelled` has them; [] where the files have none.
      places: table and row of each.
    """

    columns: Columns
    texts: list[tuple[str, ...]]
    labels: list[str]
    places: list[tuple[Table, int]]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def keys(self) -> list[str]:
        """What is the same for rows of the same text, whatever its blanks and capitals."""
        return ["\0".join(" ".join(t.split()).casefold() for t in texts) for texts in self.texts]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by label."""
        return dict(collections.Counter(self.labels))

    def subset(self, rows: Sequence[int] | Int[np.ndarray, " _"]) -> LabelledTexts:
        """The rows with these numbers."""
        return LabelledTexts(
            self.columns, [self.texts[i] for i in rows],
            [self.labels[i] for i in rows] if self.labels else [], [self.places[i] for i in rows],
        )  # fmt: skip

    def where(self, row: int) -> str:
        """File and line of a row."""
        table, at = self.places[row]
        return table.where(at)

    def encoded(self, labels: Labels) -> list[float]:
        """Class ids or numbers of the labels.

        Raises:
          FileError: a label that is none of the classes, or no number; it names file, line and label.
        """
        ids = {label: labels.encoded(label) for label in dict.fromkeys(self.labels)}
        values = []
        for row, label in enumerate(self.labels):
            if (value := ids[label]) is None:
                table, at = self.places[row]
                raise table.error(
                    at, self.columns.label, f"the label {brief(label)}", labels.expected
                )
            values.append(value)
        return values

    def examples(self, labels: Labels) -> Examples:
        """The rows for a model; labels are 0 where there are none."""
        first, *second = map(list, zip(*self.texts, strict=True))
        values = self.encoded(labels) if self.labels else [0] * len(self)
        return Examples(first, second[0] if second else None, np.asarray(labels.targets(values)))

    def repeated(self) -> tuple[int, list[tuple[int, int]]]:
        """Rows whose text stood before: how many with the same label; (before, row) of those with another."""
        first: dict[str, int] = {}
        same, other = 0, []
        for row, key in enumerate(self.keys):
            before = first.setdefault(key, row)
            if before == row:
                continue
            if self.labels[before] == self.labels[row]:
                same += 1
            else:
                other.append((before, row))
        return same, other


def read(paths: Sequence[str | Path], columns: Columns, labelled: bool = True) -> LabelledTexts:
    """Reads the rows of one or more files, one after the other.

    Args:
      paths: see `tables.read_table`.
      columns: that the files have; others are passed over.
      labelled: whether labels are needed; else files may lack the column.

    Raises:
      MissingFileError, FileError, OSError: a file, a column, a text or a label is missing or empty.
    """
    return joined([of_table(read_table(path), columns, labelled) for path in paths])


def joined(parts: Sequence[LabelledTexts]) -> LabelledTexts:
    """The rows of several; all have labels or none."""
    texts, labels, places = [], [], []
    for part in parts:
        texts += part.texts
        labels += part.labels
        places += part.places
    if labels and len(labels) != len(texts):
        table = next(part for part in parts if not part.labels).places[0][0]
        found = f"no labels in column {parts[0].columns.label!r}"
        raise FileError(table.path, "", found, "labels, as in the other files")
    return LabelledTexts(parts[0].columns, texts, labels, places)


def of_table(table: Table, columns: Columns, labelled: bool = True) -> LabelledTexts:
    """The rows of a table, see `read`."""
    table.check_columns((*columns.of_texts, *([columns.label] if labelled else [])))
    texts = list(zip(*(_filled(table, name) for name in columns.of_texts), strict=True))
    labels: list[str] = []
    if labelled or any(map(str.strip, _cells(table, columns.label))):
        labels = [spelled(label) for label in _filled(table, columns.label)]
    return LabelledTexts(columns, texts, labels, [(table, row) for row in range(len(table))])


def _cells(table: Table, column: str) -> list[str]:
    return table.text(column, missing="") if column in table.columns else []


def _filled(table: Table, column: str) -> list[str]:
    """A column without empty cells."""
    cells = table.text(column, missing="")
    for row, cell in enumerate(cells):
        if not cell.strip():
            raise table.error(row, column, "an empty cell", "a text or a number in every row")
    return cells
