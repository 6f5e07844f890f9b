"""Tables of text: Markdown for pages, CSV for files. Reports, plans and the subspace analysis use it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table whose columns are the first row's keys; floats have four digits."""
    columns = list(rows[0])
    return pipe_table(columns, [[_cell(row[column]) for column in columns] for row in rows])


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are text already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def csv_text(rows: Sequence[Mapping[str, object]], header: Sequence[str] = ()) -> str:
    """CSV with a header, the first row's keys or the given one; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
