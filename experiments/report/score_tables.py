"""Tables 2, 3, 4, 13, 14 and 15: every row of the paper with the runs that belong to it, other runs below."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from experiments.paper.columns import AVERAGE, COLUMNS, Column
from experiments.paper.counts import count, rounds_to
from experiments.paper.scores import SCORES, ScoreRow
from experiments.report.record import Record
from experiments.report.settings import pooled
from experiments.report.tables import (
    OTHER_RUNS,
    ByKey,
    Cell,
    OurFields,
    PaperFields,
    Table,
    ours_of,
    paper_of,
    shown_as,
    split_lines,
)
from lora_jax.training.records import spread

# Tasks whose settings are the same in RoBERTa-large's LoRA and LoRA† rows.
_SAME_WHEN_RESTRICTED = ("mnli", "sst2", "cola")


def score_table(number: int, records: Sequence[Record], elsewhere: Collection[str]) -> Table:
    """One of Tables 2, 3, 4, 13, 14 and 15.

    Args:
      number: of the table.
      records: all records.
      elsewhere: workdirs of runs that only other tables show.
    """
    columns = COLUMNS[number] + ((AVERAGE,) if number == 2 else ())
    tasks = {column.task for column in columns}
    candidates = [r for r in records if r.task in tasks and bool(r.split) == (number != 2)]
    lines: list[tuple[str, ...]] = []
    cells: list[Cell] = []
    placed: list[Record] = []
    for row in SCORES[number]:
        fitting = [record for record in candidates if belongs(record, row)]
        placed += fitting
        for i, (suffix, by_task) in enumerate(_by_task(fitting) or [("", {})]):
            if any(record.trained_on_part for record in by_task.values()):
                suffix += " (trained on part of the data)"
            paper = None if i else row
            # Two rows may have one label, so the figure is part of the name.
            name = f"{row.label} {row.trained}"
            line = _cells(
                number, columns, by_task, paper,
                row=name, model=row.row.model, method=row.row.method.name,
            )  # fmt: skip
            cells += line
            if paper:
                lines.append((row.label, row.trained, "paper", *(c.of_paper for c in line)))
            lines.append((suffix.strip(), _trained(by_task), "ours", *(c.of_ours for c in line)))
    others = [r for r in candidates if r not in placed and r.workdir not in elsewhere]
    groups = _alike(others)
    lines += [(OTHER_RUNS,)] if groups else []
    for group in groups:
        first = group[0]
        label = f"{first.model}, {first.label}"
        label += f" ({first.evaluated_on})" * bool(first.evaluated_on)
        for suffix, by_task in _by_task(group):
            line = _cells(
                number, columns, by_task, None, row=label, model=first.model, method=first.method
            )
            cells += line
            lines.append((label + suffix, _trained(by_task), "ours", *(c.of_ours for c in line)))
    return Table(
        number=number,
        header=("row", "trained", "", *(column.title for column in columns)),
        lines=lines,
        cells=cells,
        records=placed + others,
        notes=_notes(placed + others, candidates),
    )


def belongs(record: Record, row: ScoreRow) -> bool:
    """Whether a run belongs to a row of the paper: same model, method, size and set-up."""
    paper_row = row.row
    methods = {paper_row.method.name}
    if "AdptD" in paper_row.row:
        methods |= {"adapter_d", "adapter_p"}
    if record.model.rpartition("/")[2] != paper_row.model or record.method not in methods:
        return False
    if record.evaluated_on or (record.method == "lora" and record.weights != "qv"):
        return False
    if not rounds_to(record.trained, paper_row.paper) and (
        paper_row.reason is None or record.trained != count(paper_row).trained
    ):
        return False
    if "†" in paper_row.row:
        return record.restricted
    if paper_row.row == "RoB-large (LoRA)":
        return not record.restricted or record.task in _SAME_WHEN_RESTRICTED
    return True


def _by_task(records: Sequence[Record]) -> list[tuple[str, ByKey]]:
    return split_lines(records, lambda record: record.task)


def _alike(records: Sequence[Record]) -> list[list[Record]]:
    """The records in groups of one model, method, size and evaluation, small sizes first."""
    groups: dict[Hashable, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.model, r.trained, r.label)):
        key = record.model, record.label, record.trained, record.evaluated_on
        groups.setdefault(key, []).append(record)
    return list(groups.values())


def _cells(
    number: int,
    columns: Sequence[Column],
    by_task: ByKey,
    paper: ScoreRow | None,
    *,
    row: str,
    model: str,
    method: str,
) -> list[Cell]:
    """The cells of one line."""
    cells = []
    for i, column in enumerate(columns):
        record = by_task.get(column.task)
        ours = _average(by_task) if column is AVERAGE else ours_of(column, record)
        quoted: PaperFields = paper_of(paper.scores[i]) if paper and i < len(paper.scores) else {}
        trained = str(record.trained) if record else paper.trained if paper else ""
        cells.append(
            Cell(
                table=number, row=row, model=model, method=method, trained=trained,
                task_or_split=column.task, metric=column.metric, **quoted, **ours,
            )
        )  # fmt: skip
    return cells


def _average(by_task: ByKey) -> OurFields:
    """Our mean of the eight tasks; nothing unless all eight have a score."""
    shown = [ours_of(column, by_task.get(column.task)).get("ours", "") for column in COLUMNS[2]]
    if not all(text and text[-1].isdigit() for text in shown):
        return {}
    medians = [spread(by_task[c.task].scores[c.metric])["median"] for c in COLUMNS[2]]
    return {"ours": f"{100 * sum(medians) / len(medians):.2f}"}


def _trained(by_task: ByKey) -> str:
    return " or ".join(dict.fromkeys(f"{record.trained:,}" for record in by_task.values()))


def _notes(shown: Sequence[Record], candidates: Sequence[Record]) -> list[str]:
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
    if missing := len({r.workdir for r in candidates} - {r.workdir for r in shown}):
        notes.append(f"Runs of sweeps over weights that are in Tables 5 and 6 only: {missing}.")
    return notes
