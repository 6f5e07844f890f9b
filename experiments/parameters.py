"""Counts the trained parameters of every row of the paper's Tables 2, 3, 4 and 15, and of other decoders.

    python -m experiments.parameters --tables=2,3 --format=markdown
    python -m experiments.parameters --format=json --output=parameters.json
    python -m experiments.parameters --models=llama-2-7b,qwen2.5-7b,gemma-3-1b --rank=16

The method of each row is inserted into its model as for training, but with shapes in place of weights, so
that GPT-3 175B is counted in well under a second. A row agrees with the paper if its count, without the
task's head, rounds to the printed figure; the others come with a reason. The rows are in
`experiments.paper.rows`. With `--models` (names, or `all`) models of today are counted instead.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.paper import decoder_counts
from experiments.paper.counts import CLASSES, Count, count
from experiments.paper.rows import ROWS, TITLES
from experiments.runs import command_line
from lora_jax import files
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.methods import CONSTRUCTORS
from lora_jax.ranges import Whole, check

FORMATS = ("markdown", "json")
WIDEST_RANK = 2**16
_NUMBERS = ("trained", "head", "total", "paper", "values", "bfloat16")  # columns to the right
_LEGEND = """\
Trained: values that train, without the task's head. Total: the whole model, with head and with what
the method inserts. Agrees: whether trained rounds to the paper's figure. Setting: where it is from."""


def choose(tables: Sequence[str]) -> list[int]:
    """The numbers of the tables that were asked for, each once.

    Raises:
      ValueError: no table, or one without rows in `experiments.paper.rows`.
    """
    known = {str(table): table for table in TITLES}
    unknown = [name for name in tables if name not in known]
    if unknown or not tables:
        what = f"unknown tables {unknown}" if unknown else "no table is given"
        raise InputError(f"{what}; known tables are {list(TITLES)}")
    return [known[name] for name in dict.fromkeys(tables)]


def short(method: Method) -> str:
    """A method as its constructor call, without default values and without the head."""
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
    for pattern, arguments in targets.items():
        names = pattern.rpartition("/")[2].strip("()").replace("|", " ")
        parts = ",".join(arguments["parts"])
        weights.append(names + (f"[{parts}]" if parts else ""))
    first = next(iter(targets.values()))  # all targets of a row have the same rank and alpha
    alpha = f", alpha={first['alpha']:g}" if first["alpha"] != first["rank"] else ""
    return f'"{" ".join(weights)}", rank={first["rank"]}{alpha}'


def markdown(counts: Sequence[Count]) -> str:
    """One Markdown table per table of the paper, with numbered remarks below."""
    by_table: dict[int, list[Count]] = {}
    for row_count in counts:
        by_table.setdefault(row_count.paper_row.table, []).append(row_count)
    sections = (_section(table, of_table) for table, of_table in by_table.items())
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
    for row_count in counts:
        row = row_count.paper_row
        rows.append(
            (
                row.row,
                f"`{short(row.method)}`",
                f"{row_count.trained:,}",
                "" if row_count.head is None else f"{row_count.head:,}",
                f"{row_count.total / 10**6:,.1f}M",
                row.paper,
                mark("yes" if row_count.agrees else "no", row.reason),
                mark("paper" if row.settings_known else "inferred", row.note),
            )
        )
    agree = sum(row_count.agrees for row_count in counts)
    head = f"{agree} of {len(counts)} rows round to the paper's figure."
    if any(row_count.head is not None for row_count in counts):
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
    """A Markdown table in aligned columns: numbers to the right, the rest to the left."""
    right = [name in _NUMBERS or name.startswith("r = ") for name in rows[0]]
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


def report(tables: Sequence[str], output_format: str) -> str:
    """What the command prints.

    Args:
      tables: numbers of tables, as text.
      output_format: one of `FORMATS`.

    Raises:
      ValueError: an unknown table or format.
    """
    if output_format not in FORMATS:
        raise InputError(f"unknown format {output_format!r}; known formats are {list(FORMATS)}")
    chosen = choose(tables)
    counts = [count(row) for table in chosen for row in ROWS if row.table == table]
    if output_format == "json":
        return to_json([row_count.to_json() for row_count in counts]) + "\n"
    return markdown(counts)


def models_report(names: Sequence[str], rank: int, output_format: str) -> str:
    """What the command prints of other decoders.

    Args:
      names: of models, or "all".
      rank: of LoRA.
      output_format: one of `FORMATS`.

    Raises:
      ValueError: an unknown model or format, or a rank that a matrix does not allow.
    """
    if output_format not in FORMATS:
        raise InputError(f"unknown format {output_format!r}; known formats are {list(FORMATS)}")
    check("--rank", rank, Whole(most=WIDEST_RANK))
    counts = [decoder_counts.count(name, rank) for name in decoder_counts.choose(names)]
    if output_format == "json":
        return to_json([dataclasses.asdict(found) for found in counts]) + "\n"
    return "\n".join(_table(decoder_counts.rows(counts, rank))) + "\n"


def main(arguments: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        if _OUTPUT.value:
            files.check_output(Path(_OUTPUT.value), flag="--output")
        if _MODELS.value:
            text = models_report(_MODELS.value, _RANK.value, _FORMAT.value)
        else:
            text = report(_TABLES.value, _FORMAT.value)
        if not _OUTPUT.value:
            print(text, end="")
            return
        path = Path(_OUTPUT.value)
        files.write_text(path, text)
        print(f"wrote {path}")


if __name__ == "__main__":
    _TABLES = flags.DEFINE_list("tables", [str(t) for t in TITLES], "Tables of the paper.")
    _MODELS = flags.DEFINE_list("models", [], "Decoders to count instead; all for all of them.")
    _RANK = flags.DEFINE_integer("rank", 8, "Of LoRA, with --models.")
    _FORMAT = flags.DEFINE_string("format", FORMATS[0], f"One of {', '.join(FORMATS)}.")
    _OUTPUT = flags.DEFINE_string("output", None, "File for the result; without it, print.")
    command_line.run(main)
