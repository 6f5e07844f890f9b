"""Ranks of GPT-2's LoRA on E2E beside the paper's Table 18."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper.columns import COLUMNS
from experiments.paper.scores import TABLE_18
from experiments.report.record import Record, weights_label
from experiments.report.settings import groups, pooled, swept_setting
from experiments.report.tables import OTHER_RUNS, Cell, Table, ours_of, paper_of
from experiments.report.weight_sweeps import Sweep, point, sweep_names

_COLUMNS = COLUMNS[18]


def gpt2_rank_table(records: Sequence[Record]) -> Table:
    """Table 18: the paper's ranks with ours beside, and other sweeps of several ranks below."""
    table = Table(
        number=18,
        header=("rank", "trained", "", *(column.title for column in _COLUMNS)),
        lines=[],
        cells=[],
        records=[],
    )
    sweeps = _sweeps(records)
    table.records.extend(record for sweep in sweeps for record in sweep)
    of_paper = [sweep for sweep in sweeps if _is_papers(sweep)]
    papers_records = [record for sweep in of_paper for record in sweep]
    for rank, scores in TABLE_18.items():
        label = f"r={rank}"
        fitting = pooled(record for record in papers_records if record.rank == rank)
        single = fitting[0] if len(fitting) == 1 else None
        _add(table, single, row=label, text=label, model="gpt2-medium", scores=scores)
        for record in fitting if len(fitting) > 1 else []:
            text = f"{label} [`{record.workdir}`]"
            _add(table, record, row=label, text=text, model="gpt2-medium")
    others = [sweep for sweep in sweeps if sweep not in of_paper]
    others += [[record] for record in papers_records if record.rank not in TABLE_18]
    if others:
        table.lines.append((OTHER_RUNS,))
    for name, sweep in zip(sweep_names(others), others, strict=True):
        name = name.replace("e2e bleu", weights_label(sweep[0].weights or ""))
        results = pooled(sweep)
        for record in sorted(results, key=point):
            label = f"r={record.rank}"
            twice = sum(point(other) == point(record) for other in results) > 1
            text = f"{name}, {label}" + f" [`{record.workdir}`]" * twice
            _add(table, record, row=label, text=text, model=record.model)
    return table


def _sweeps(records: Sequence[Record]) -> list[Sweep]:
    """Runs on E2E that differ in the rank only, of two ranks or more."""
    chosen = (record for record in records if record.task == "e2e" and record.weights)
    sweeps = [s for _, s in groups(chosen, lambda r: (*swept_setting(r), r.weights))]
    return [sweep for sweep in sweeps if len({record.rank for record in sweep}) > 1]


def _is_papers(sweep: Sweep) -> bool:
    """Whether a sweep has the paper's model, weights and test set."""
    first = sweep[0]
    model = first.model.rpartition("/")[2]
    return model == "gpt2-medium" and first.weights == "qv" and not first.evaluated_on


def _add(
    table: Table,
    record: Record | None,
    *,
    row: str,
    text: str,
    model: str,
    scores: Sequence[str] = (),
) -> None:
    """Adds a rank to the table.

    Args:
      table: gets the cells and lines.
      record: of the run, if there is one.
      row: name in the CSV.
      text: name in the Markdown.
      model: label.
      scores: the paper's; if there are any, the rank has a line of the paper too.
    """
    cells = [
        Cell(
            table=18, row=row, model=model, method="lora",
            trained=str(record.trained) if record else "", task_or_split="e2e",
            metric=column.metric, **(paper_of(scores[i]) if scores else {}),
            **ours_of(column, record),
        )
        for i, column in enumerate(_COLUMNS)
    ]  # fmt: skip
    table.cells.extend(cells)
    if scores:
        table.lines.append((text, "", "paper", *(c.of_paper for c in cells)))
        text = ""
    trained = f"{record.trained:,}" if record else ""
    table.lines.append((text, trained, "ours", *(c.of_ours for c in cells)))
