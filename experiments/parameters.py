"""Counts the trained parameters of every row of the paper's Tables 2, 3, 4 and 15.

    python -m experiments.parameters --tables=2,3 --format=markdown
    python -m experiments.parameters --format=json --output=parameters.json

Each row's method is inserted into its model as for training, with shapes in place of weights: GPT-3
175B counts in well under a second. A row agrees with the paper if its count, the task head apart,
rounds to the printed figure; the others come with the reason. The rows are in `paper_rows`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from flax import nnx

from experiments import workdir as workdirs
from experiments.paper_rows import ROWS, TITLES, PaperRow
from lora_jax.method import Method
from lora_jax.methods import CONSTRUCTORS
from lora_jax.methods import HEAD as HEAD_GROUP
from lora_jax.models import decoder, encoder
from lora_jax.models.deberta_shapes import ClassifierShapes, DebertaShapes
from lora_jax.models.decoder import Decoder
from lora_jax.models.encoder import Classifier
from lora_jax.training.records import to_json

CLASSES = 2  # of the heads: MNLI has three and STS-B one output
MODELS: Mapping[str, Callable[[], nnx.Module]] = {
    **{
        name: functools.partial(lambda config: Classifier(config, CLASSES, nnx.Rngs(0)), config)
        for name, config in encoder.SIZES.items()
    },
    "deberta-v2-xxlarge": lambda: ClassifierShapes(DebertaShapes(), CLASSES, nnx.Rngs(0)),
    **{
        name: functools.partial(lambda config: Decoder(config, nnx.Rngs(0)), config)
        for name, config in decoder.SIZES.items()
    },
}
FORMATS = ("markdown", "json")
_LEGEND = """\
Trained: values that train, without the task's head. Total: the whole model, with head and with what
the method inserts. Agrees: whether trained rounds to the paper's figure. Setting: where it is from."""
_UNITS = {"M": 10**6, "B": 10**9}


@dataclasses.dataclass(frozen=True)
class Count:
    """A row with its count.

    Attributes:
      paper_row: the row.
      trained: values that train, the head apart.
      head: values of the task head, which the paper's figures leave out; None without a head.
      total: values of the whole model, the head and what the method inserted included.
      agrees: whether `trained` rounds to the printed figure.
    """

    paper_row: PaperRow
    trained: int
    head: int | None
    total: int
    agrees: bool

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        row = self.paper_row
        return {
            "table": row.table,
            "row": row.row,
            "model": row.model,
            "method": row.method.to_json(),
            "trained": self.trained,
            "head": self.head,
            "total": self.total,
            "paper": row.paper,
            "paper_value": int(printed(row.paper)[0]),
            "agrees": self.agrees,
            "reason": row.reason,
            "settings_known": row.settings_known,
            "note": row.note,
        }


def printed(figure: str) -> tuple[Decimal, Decimal]:
    """The value of a figure as printed, and what its last digit stands for: 0.35M -> 350000, 10000.

    Raises:
      ValueError: no number in millions (M) or billions (B).
    """
    match = re.fullmatch(r"(\d[\d,]*)(?:\.(\d+))?([MB])", figure)
    if not match:
        raise ValueError(f"{figure!r} is no printed figure such as 0.35M, 175,255.8M or 175B")
    whole, decimals, unit = match[1].replace(",", ""), match[2] or "", _UNITS[match[3]]
    step = Decimal(unit) / 10 ** len(decimals)
    return Decimal(whole + decimals) * step, step


def rounds_to(count: int, figure: str) -> bool:
    """Whether a count, rounded to the decimals of a printed figure (half up), is that figure."""
    value, step = printed(figure)
    return (Decimal(count) / step).quantize(Decimal(1), ROUND_HALF_UP) * step == value


@functools.cache
def abstract(model: str) -> nnx.Module:
    """The pre-trained model with shapes in place of its weights."""
    return nnx.eval_shape(MODELS[model])


def count(row: PaperRow) -> Count:
    """Inserts the row's method into its abstract model and counts."""
    adapted = nnx.eval_shape(
        lambda model: row.method.insert(model, jax.random.key(0)), abstract(row.model)
    )
    counts = row.method.summary(adapted).counts()
    head = counts.get(HEAD_GROUP)
    trained = counts["trainable"] - (head or 0)
    return Count(row, trained, head, counts["total"], rounds_to(trained, row.paper))


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
    with workdirs.readable_errors():
        if len(arguments) > 1:
            raise ValueError(f"unknown arguments {arguments[1:]}; see --help")
        text = report(_TABLES.value, _FORMAT.value)
        if not _OUTPUT.value:
            print(text, end="")
            return
        path = Path(_OUTPUT.value)
        workdirs.write_text(path, text)
        print(f"wrote {path}")


if __name__ == "__main__":
    _TABLES = flags.DEFINE_list("tables", [str(t) for t in TITLES], "Tables of the paper.")
    _FORMAT = flags.DEFINE_string("format", FORMATS[0], f"One of {', '.join(FORMATS)}.")
    _OUTPUT = flags.DEFINE_string("output", None, "File for the result; else it is printed.")
    app.run(main)
