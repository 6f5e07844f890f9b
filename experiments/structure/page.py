"""Writes what was measured: structure.md, matrices.csv, structure.json and the figures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import folder, text_tables
from experiments.structure import figures
from experiments.structure.measuring import Measured, Results, Settings
from lora_jax import files
from lora_jax.analysis import plots

PAGE, TABLE, RECORD = "structure.md", "matrices.csv", "structure.json"
FILES = (PAGE, TABLE, RECORD)
_FIELDS = ("rank", "effective_rank", "stable_rank", "norm", "relative", "intruders")
_COLUMNS = ("adapter", "form", "weight", "map", *_FIELDS)  # of the table of matrices
_MEANING = """\
`rank`, `effective rank` (exp of the entropy of the singular values), `stable rank` and `relative size`
(Frobenius norm over that of the weight) are means over the matrices. `intruders`: of the first {k} singular
vectors of each tuned weight, on the side of the {side}, those whose largest |cosine| to one of the base's is
below {epsilon:g}; of all matrices together, so at most {k} times as many as there are matrices."""
_FORGETTING = """\
`loss`: mean over {tokens:,} tokens of {text}; the base's is {loss:.4f}. `forgetting`: the rise against it."""


def check_place(output: Path) -> None:
    """Raises InputError if the results cannot be written there."""
    folder.check_place(output)
    files.check_folder(output / "figures")


def table(results: Results) -> list[dict[str, object]]:
    """The rows of the table: every adapter as trained and converted."""
    return [_row(results, row) for row in results.rows]


def _row(results: Results, row: Measured) -> dict[str, object]:
    cells: dict[str, object] = {
        "adapter": row.name,
        "form": row.form,
        "matrices": row.matrices,
        "rank": row.mean("rank"),
        "effective rank": row.mean("effective_rank"),
        "stable rank": row.mean("stable_rank"),
        "relative size": row.mean("relative"),
        "intruders": row.intruders if row.matrices else math.nan,
        "intruders per matrix": row.intruders / row.matrices if row.matrices else math.nan,
    }
    if row.loss is not None:
        cells |= {"loss": row.loss, "forgetting": results.forgetting(row)}
    return {key: "–" if _undefined(cell) else cell for key, cell in cells.items()}


def _undefined(cell: object) -> bool:
    return isinstance(cell, float) and not math.isfinite(cell)


def _matrix_rows(results: Results) -> list[dict[str, object]]:
    """One row per weight matrix."""
    rows: list[dict[str, object]] = []
    for row in results.rows:
        for path, one in row.structures.items():
            columns = [np.asarray(getattr(one, field)).tolist() for field in _FIELDS]
            for number, values in enumerate(zip(*columns, strict=True)):
                names = {"adapter": row.name, "form": row.form, "weight": path, "map": number}
                rows.append({**names, **dict(zip(_FIELDS, values, strict=True))})
    return rows


def write(output: Path, results: Results, settings: Settings) -> None:
    """Writes the page, the table of all matrices, the record and the figures.

    Args:
      output: the folder.
      results: of all adapters.
      settings: of the command line.
    """
    rows, matrices = table(results), _matrix_rows(results)
    about = {row.name: row.method for row in results.rows if row.form == "as trained"}
    parts = [
        "# Structure of updates" + (" and forgetting" if settings.text else ""),
        text_tables.markdown([{"adapter": k, "method": v} for k, v in about.items()]),
        _MEANING.format(k=settings.k, side=settings.side, epsilon=settings.epsilon),
        text_tables.markdown(rows),
    ]
    if results.base_loss is not None:
        parts.append(
            _FORGETTING.format(tokens=results.tokens, text=settings.text, loss=results.base_loss)
        )
    parts += results.notes
    drawn = {}
    if any(row.matrices for row in results.rows):
        drawn["spectra.png"] = figures.spectra(results), "Spectra of the updates"
    if results.base_loss is not None:
        drawn["forgetting.png"] = (
            figures.forgetting(results),
            "Intruder dimensions and forgetting",
        )
    for file, (figure, caption) in drawn.items():
        plots.save(figure, output / "figures" / file)
        parts.append(f"![{caption}](figures/{file})")
    files.write_text(output / PAGE, "\n\n".join(parts) + "\n")
    files.write_text(output / TABLE, text_tables.csv_text(matrices, _COLUMNS))
    files.write_json(output / RECORD, _record(results, settings, rows, matrices))


def _record(
    results: Results,
    settings: Settings,
    rows: list[dict[str, object]],
    matrices: list[dict[str, object]],
) -> dict[str, Any]:
    spectra = [
        {"adapter": row.name, "form": row.form, "weight": path, "values": one.values.tolist()}
        for row in results.rows
        for path, one in row.structures.items()
    ]
    return {
        "settings": dataclasses.asdict(settings),
        "base_loss": results.base_loss,
        "tokens": results.tokens,
        "notes": results.notes,
        "methods": {row.name: row.method for row in results.rows if row.form == "as trained"},
        "rows": rows,
        "matrices": matrices,
        "spectra": spectra,
    }
