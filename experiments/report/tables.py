"""Tables of scores with this project's runs beside the paper's numbers, as Markdown and CSV."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable
from typing import TypedDict

from experiments.paper.columns import SETUPS, TITLES, Column
from experiments.paper.scores import parse
from experiments.report.record import Record
from experiments.report.settings import pooled
from experiments.runs import text_tables
from lora_jax.training.records import spread

MISSING = "–"
OTHER_RUNS = "*this project's runs: no row of the paper*"

ByKey = dict[Hashable, Record]


class PaperFields(TypedDict, total=False):
    """The fields of a cell that a printed score fills."""

    paper: str
    paper_std: str


class OurFields(TypedDict, total=False):
    """The fields of a cell that a record fills."""

    ours: str
    ours_std: str
    seeds: str
    workdir: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One score of a table, as text; "" where there is none. The fields are the CSV's columns."""

    table: int
    row: str
    model: str
    method: str
    trained: str
    task_or_split: str
    metric: str
    paper: str = ""
    paper_std: str = ""
    ours: str = ""
    ours_std: str = ""
    seeds: str = ""
    workdir: str = ""

    @property
    def of_paper(self) -> str:
        """The paper's score as Markdown shows it."""
        return shown_as(self.paper, self.paper_std)

    @property
    def of_ours(self) -> str:
        """Our score as Markdown shows it."""
        return shown_as(self.ours, self.ours_std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper with our runs.

    Attributes:
      number: in the paper.
      header: column titles.
      lines: of the Markdown table; short ones are filled with empty cells.
      cells: every score, for the CSV.
      records: the runs in it.
      notes: what a reader needs to know of single runs.
      findings: Markdown that follows: what the scores say; "" for nothing.
    """

    number: int
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    cells: list[Cell]
    records: list[Record]
    notes: list[str] = dataclasses.field(default_factory=list)
    findings: str = ""

    @property
    def title(self) -> str:
        """Number and subject."""
        return f"Table {self.number}: {TITLES[self.number]}"

    def markdown(self) -> str:
        """Title, the paper's set-up, and the table."""
        width = len(self.header)
        rows = [line + ("",) * (width - len(line)) for line in self.lines]
        text = text_tables.pipe_table(self.header, rows)
        return f"## {self.title}\n\nPaper: {SETUPS[self.number]}\n\n{text}"

    def csv(self) -> str:
        """One line per cell."""
        return text_tables.csv_text([dataclasses.asdict(cell) for cell in self.cells])


def shown_as(value: str, std: str) -> str:
    """A score with its spread, as Markdown shows it."""
    return value + (f"±{std}" if std else "") if value else MISSING


def ours_of(column: Column, record: Record | None, *, mean: bool = False) -> OurFields:
    """The fields of a cell that a record fills.

    Args:
      column: of the cell.
      record: None leaves the cell empty.
      mean: takes the mean over seeds, which is the median on GLUE else, and the mean on data to text.
    """
    values = () if record is None else record.scores.get(column.metric, ())
    if record is None or not values:
        return {}
    seeds, workdir = str(len(values)), record.workdir
    if diverged := sum(not math.isfinite(v) for v in values):
        text = f"diverged ({diverged} of {len(values)} seeds)"
        return {"ours": text, "seeds": seeds, "workdir": workdir}
    result = spread(values)
    scale, digits = (100, 2) if column.percent else (1, 4)
    center = result["mean" if record.split or mean else "median"]
    std = f"{scale * result['std']:.{digits}f}" if len(values) > 1 else ""
    shown = f"{scale * center:.{digits}f}"
    return {"ours": shown, "ours_std": std, "seeds": seeds, "workdir": workdir}


def paper_of(score: str) -> PaperFields:
    """The fields of a cell that a printed score fills."""
    value, std = parse(score)
    return {"paper": value, "paper_std": std}


def split_lines(
    records: Iterable[Record], key: Callable[[Record], Hashable]
) -> list[tuple[str, ByKey]]:
    """Arranges the records of a row in lines, each with a suffix for the row's label.

    Cells with a single result (seeds pooled) share the first line. Where a cell has several results, each
    has a line of its own with its workdir.

    Args:
      records: of the row.
      key: the cell that a record belongs to.
    """
    by_key: dict[Hashable, list[Record]] = {}
    for record in pooled(records):
        by_key.setdefault(key(record), []).append(record)
    single = {k: results[0] for k, results in by_key.items() if len(results) == 1}
    lines = [("", single)] if single else []
    return lines + [
        (f" [`{record.workdir}`]", {k: record})
        for k, results in by_key.items()
        if len(results) > 1
        for record in results
    ]
