"""The paper's tables with this project's runs beside its numbers: data, Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Hashable, Iterable, Sequence

from experiments.paper.counts import count, rounds_to
from experiments.paper.scores import (
    AVERAGE,
    COLUMNS,
    SCORES,
    SETUPS,
    TITLES,
    Column,
    ScoreRow,
    parse,
)
from experiments.report.records import Record, pooled
from experiments.report.text_tables import grid
from lora_jax.training.records import spread

MISSING = "–"
OWN = "*this project's runs: no row of the paper*"
# Settings of these tasks are the same in RoBERTa-large's LoRA and LoRA† rows.
_ALSO_UNRESTRICTED = ("mnli", "sst2", "cola")

ByKey = dict[Hashable, Record]


@dataclasses.dataclass(frozen=True)
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
        """The paper's score as in Markdown."""
        return shown_as(self.paper, self.paper_std)

    @property
    def of_ours(self) -> str:
        """Our score as in Markdown."""
        return shown_as(self.ours, self.ours_std)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      number: the paper's.
      header: column titles.
      lines: of the Markdown table.
      cells: every score, for the CSV.
      records: the runs in it.
      notes: what a reader needs to know of single runs.
    """

    number: int
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    cells: list[Cell]
    records: list[Record]
    notes: list[str]

    @property
    def title(self) -> str:
        """Number and subject."""
        return f"Table {self.number}: {TITLES[self.number]}"

    def markdown(self) -> str:
        """Title, the paper's set-up, and the table."""
        width = len(self.header)
        rows = [
            self.header,
            ("---",) * width,
            *(line + ("",) * (width - len(line)) for line in self.lines),
        ]
        text = grid(rows)
        return f"## {self.title}\n\nPaper: {SETUPS[self.number]}\n\n{text}"

    def csv(self) -> str:
        """One line per cell."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Cell)])
        writer.writerows(dataclasses.astuple(cell) for cell in self.cells)
        return out.getvalue()


def shown_as(value: str, std: str) -> str:
    """A score with its spread, as in Markdown."""
    return value + (f"±{std}" if std else "") if value else MISSING


def ours_of(column: Column, record: Record | None) -> dict[str, str]:
    """The fields of a cell that a record fills."""
    values = () if record is None else record.scores.get(column.metric, ())
    if record is None or not values:
        return {}
    origin = {"seeds": str(len(values)), "workdir": record.workdir}
    if diverged := sum(not math.isfinite(v) for v in values):
        return {"ours": f"diverged ({diverged} of {len(values)} seeds)", **origin}
    result = spread(values)
    scale, digits = (100, 2) if column.percent else (1, 4)
    center = result["mean" if record.split else "median"]
    std = f"{scale * result['std']:.{digits}f}" if len(values) > 1 else ""
    return {"ours": f"{scale * center:.{digits}f}", "ours_std": std, **origin}


def paper_of(score: str) -> dict[str, str]:
    """The fields of a cell that a printed score fills."""
    value, std = parse(score)
    return {"paper": value, "paper_std": std}


def _average(by_task: ByKey) -> dict[str, str]:
    """Our Avg: only of all eight tasks."""
    values = [ours_of(c, by_task.get(c.task)).get("ours", "") for c in COLUMNS[2]]
    if not all(v and v[-1].isdigit() for v in values):
        return {}
    runs = [spread(by_task[c.task].scores[c.metric])["median"] for c in COLUMNS[2]]
    return {"ours": f"{100 * sum(runs) / len(runs):.2f}"}


def split_lines(
    records: Iterable[Record], key: Callable[[Record], Hashable]
) -> list[tuple[str, ByKey]]:
    """The records of a row as lines of cells, with a suffix for the label.

    Where a cell has one result, seeds pooled, it is in the first line. Several results of a cell stay
    apart, each in a line of its own with its workdir.
    """
    by_key: dict[Hashable, list[Record]] = {}
    for record in pooled(records):
        by_key.setdefault(key(record), []).append(record)
    first = {k: own[0] for k, own in by_key.items() if len(own) == 1}
    lines = [("", first)] if first else []
    return lines + [
        (f" [`{record.workdir}`]", {k: record})
        for k, own in by_key.items()
        if len(own) > 1
        for record in own
    ]


def belongs(record: Record, row: ScoreRow) -> bool:
    """Whether a run is one of a row of the paper: same model, method, size and set-up."""
    own = row.row
    methods = {own.method.name} | ({"adapter_d", "adapter_p"} if "AdptD" in own.row else set())
    if record.model.rpartition("/")[2] != own.model or record.method not in methods:
        return False
    if record.evaluated_on or (record.method == "lora" and record.weights != "qv"):
        return False
    if not rounds_to(record.trained, own.paper) and (
        own.reason is None or record.trained != count(own).trained
    ):
        return False
    if "†" in own.row:
        return record.restricted
    if own.row == "RoB-large (LoRA)":
        return not record.restricted or record.task in _ALSO_UNRESTRICTED
    return True


def score_table(number: int, records: Sequence[Record], elsewhere: set[str]) -> Table:
    """Tables 2, 3, 13 and 14."""
    columns = COLUMNS[number] + ((AVERAGE,) if number == 2 else ())
    tasks = {column.task for column in columns}
    own = [r for r in records if r.task in tasks and bool(r.split) == (number != 2)]
    lines: list[tuple[str, ...]] = []
    cells: list[Cell] = []

    def add(names: tuple[str, str, str], by_task: ByKey, text: str, paper: ScoreRow | None) -> None:
        line = []
        for i, column in enumerate(columns):
            record = by_task.get(column.task)
            ours = _average(by_task) if column is AVERAGE else ours_of(column, record)
            given = paper_of(paper.scores[i]) if paper else {}
            size = str(record.trained) if record else paper.trained if paper else ""
            line.append(
                Cell(
                    number, row=names[0], model=names[1], method=names[2], trained=size,
                    task_or_split=column.task, metric=column.metric, **given, **ours,
                )
            )  # fmt: skip
        cells.extend(line)
        if paper:
            lines.append((paper.label, paper.trained, "paper", *(c.of_paper for c in line)))
        trained = " or ".join(dict.fromkeys(f"{r.trained:,}" for r in by_task.values()))
        lines.append((text, trained, "ours", *(c.of_ours for c in line)))

    placed: list[Record] = []
    for row in SCORES[number]:
        fitting = [record for record in own if belongs(record, row)]
        placed += fitting
        # Two rows may have one label, so the figure is part of the name.
        names = f"{row.label} {row.trained}", row.row.model, row.row.method.name
        found = split_lines(fitting, lambda record: record.task) or [("", {})]
        for i, (suffix, by_task) in enumerate(found):
            if any(record.trained_on_part for record in by_task.values()):
                suffix += " (trained on part of the data)"
            add(names, by_task, suffix.strip(), None if i else row)
    kept = [r for r in own if r not in placed and r.workdir not in elsewhere]
    groups: dict[Hashable, list[Record]] = {}
    for record in sorted(kept, key=lambda r: (r.model, r.trained, r.label)):
        row_of = record.model, record.label, record.trained, record.evaluated_on
        groups.setdefault(row_of, []).append(record)
    lines += [(OWN,)] if groups else []
    for group in groups.values():
        one = group[0]
        label = f"{one.model}, {one.label}" + f" ({one.evaluated_on})" * bool(one.evaluated_on)
        for suffix, by_task in split_lines(group, lambda record: record.task):
            add((label, one.model, one.method), by_task, label + suffix, None)
    titles = ("row", "trained", "", *(column.title for column in columns))
    return Table(number, titles, lines, cells, placed + kept, _notes(number, placed + kept, own))


def _notes(number: int, shown: Sequence[Record], own: Sequence[Record]) -> list[str]:
    notes = []
    for record in pooled(shown):
        if "accuracy_mismatched" in record.scores:
            texts = []
            for name in ("accuracy", "accuracy_mismatched"):
                ours = ours_of(Column("mnli", name, ""), record)
                texts.append(shown_as(ours["ours"], ours.get("ours_std", "")))
            notes.append(
                f"MNLI of `{record.workdir}`: matched {texts[0]} (shown), mismatched {texts[1]}."
            )
    if missing := len({r.workdir for r in own} - {r.workdir for r in shown}):
        notes.append(f"Runs of sweeps over weights that are in Tables 5 and 6 only: {missing}.")
    return notes
