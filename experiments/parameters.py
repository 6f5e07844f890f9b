"""Counts the trained parameters of every row of the paper's Tables 2, 3, 4 and 15.

    python -m experiments.parameters --tables=2,3 --format=markdown
    python -m experiments.parameters --format=json --output=parameters.json

Each row's method is inserted into its model as for training, with shapes in place of weights: GPT-3
175B counts in well under a second. A row agrees with the paper if its count, the task head apart,
rounds to the printed figure; the others come with the reason. The rows are in `paper_rows`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.paper.counts import CLASSES, Count, count
from experiments.paper.rows import ROWS, TITLES
from experiments.runs import command_line
from lora_jax import files
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.methods import CONSTRUCTORS

FORMATS = ("markdown", "json")
_LEGEND = """\
Trained: values that train, without the task's head. Total: the whole model, with head and with what
the method inserts. Agrees: whether trained rounds to the paper's figure. Setting: where it is from."""


def choose(tables: Sequence[str]) -> list[int]:
    """The numbers of the tables asked for.

    Raises:
      ValueError: no table, or one whose rows are not here.
    """
    known = {str(table): table for table in TITLES}
    unknown = [name for name in tables if name not in known]
    if unknown or not tables:
        what = f"unknown tables {unknown}" if unknown else "no table is given"
        raise ValueError(f"{what}; known tables are {list(TITLES)}")
    return [known[name] for name in dict.fromkeys(tables)]


def short(method: Method) -> str:
    """A method as the constructor call, without what has its default value or names the head."""
    return " + ".join(f"{name}({_arguments(name, values)})" for name, values in method.spec)


def _arguments(name: str, values: Mapping[str, Any]) -> str:
    if name == "lora":
        return _lora_arguments(values["targets"])
    shown = []
    for key, parameter in inspect.signature(CONSTRUCTORS[name]).parameters.items():
        optional = parameter.kind is parameter.KEYWORD_ONLY and values[key] == parameter.default
        if key != "head" and not optional:
            shown.append(f"{key}={values[key]}")
    return ", ".join(shown)


def _lora_arguments(targets: Mapping[str, Mapping[str, Any]]) -> str:
    """The names of the weights in place of the patterns: `"qkv[q,v] output", rank=4`."""
    weights = []
    for pattern, own in targets.items():
        names = pattern.rpartition("/")[2].strip("()").replace("|", " ")
        weights.append(names + (f"[{','.join(own['parts'])}]" if own["parts"] else ""))
    first = next(iter(targets.values()))  # the rows here have one rank and alpha
    alpha = f", alpha={first['alpha']:g}" if first["alpha"] != first["rank"] else ""
    return f'"{" ".join(weights)}", rank={first["rank"]}{alpha}'


def markdown(counts: Sequence[Count]) -> str:
    """One Markdown table per table of the paper, with remarks by number beneath."""
    by_table: dict[int, list[Count]] = {}
    for one in counts:
        by_table.setdefault(one.paper_row.table, []).append(one)
    sections = (_section(table, own) for table, own in by_table.items())
    return "\n\n".join([_LEGEND, *sections]) + "\n"


def _section(table: int, counts: Sequence[Count]) -> str:
    remarks: dict[str, int] = {}

    def mark(text: str, remark: str | None) -> str:
        if remark is None:
            return text
        return f"{text} [{remarks.setdefault(remark, len(remarks) + 1)}]"

    rows: list[tuple[str, ...]] = [
        ("row", "method", "trained", "head", "total", "paper", "agrees", "setting")
    ]
    for one in counts:
        row = one.paper_row
        rows.append(
            (
                row.row,
                f"`{short(row.method)}`",
                f"{one.trained:,}",
                "" if one.head is None else f"{one.head:,}",
                f"{one.total / 10**6:,.1f}M",
                row.paper,
                mark("yes" if one.agrees else "no", row.reason),
                mark("paper" if row.settings_known else "inferred", row.note),
            )
        )
    agree = sum(one.agrees for one in counts)
    head = f"{agree} of {len(counts)} rows round to the paper's figure."
    if any(one.head is not None for one in counts):
        head += f" Heads (for {CLASSES} classes) train too; the paper's figures leave them out."
    else:
        rows = [row[:3] + row[4:] for row in rows]
    notes = [
        textwrap.fill(f"- [{number}] {text}", 100, subsequent_indent="  ")
        for text, number in remarks.items()
    ]
    lines = [f"## Table {table}: {TITLES[table]}", "", head, "", *_table(rows), "", *notes]
    return "\n".join(lines).rstrip()


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Numbers to the right, the rest to the left, columns of one width."""
    right = [name in ("trained", "head", "total", "paper") for name in rows[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return [
        "| "
        + " | ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        + " |"
        for row in (rows[0], rule, *rows[1:])
    ]


def report(tables: Sequence[str], form: str) -> str:
    """The text of the command.

    Args:
      tables: numbers of tables, as text.
      form: one of `FORMATS`.

    Raises:
      ValueError: an unknown table or format.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; known formats are {list(FORMATS)}")
    chosen = choose(tables)
    counts = [count(row) for table in chosen for row in ROWS if row.table == table]
    if form == "json":
        return to_json([one.to_json() for one in counts]) + "\n"
    return markdown(counts)


def main(arguments: list[str]) -> None:
    """Command line."""
    with command_line.readable_errors():
        if len(arguments) > 1:
            raise ValueError(f"unknown arguments {arguments[1:]}; see --help")
        text = report(_TABLES.value, _FORMAT.value)
        if not _OUTPUT.value:
            print(text, end="")
            return
        path = Path(_OUTPUT.value)
        files.write_text(path, text)
        print(f"wrote {path}")


if __name__ == "__main__":
    _TABLES = flags.DEFINE_list("tables", [str(t) for t in TITLES], "Tables of the paper.")
    _FORMAT = flags.DEFINE_string("format", FORMATS[0], f"One of {', '.join(FORMATS)}.")
    _OUTPUT = flags.DEFINE_string("output", None, "File for the result; else it is printed.")
    app.run(main)
