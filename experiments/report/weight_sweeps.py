"""Sweeps over which weights LoRA adapts and at which rank, beside the paper's Tables 5 and 6."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper.columns import HEADLINES, Column
from experiments.paper.scores import POINTS_5, RANKS_6, TABLE_5, TABLE_6
from experiments.report.record import Record, weights_label
from experiments.report.settings import distinctions, groups, setting, swept_setting
from experiments.report.tables import ByKey, Cell, Table, ours_of, split_lines

Sweep = list[Record]  # LoRA runs of one set-up that differ in weights, rank and alpha only
Point = tuple[str, int]  # weights as letters, and rank


def find_sweeps(records: Sequence[Record]) -> list[Sweep]:
    """The sweeps over attention weights and ranks, of two points or more."""
    chosen = (record for record in records if record.weights and record.task in HEADLINES)
    sweeps = [sweep for _, sweep in groups(chosen, swept_setting)]
    return [sweep for sweep in sweeps if len({point(record) for record in sweep}) > 1]


def only_in_sweeps(records: Sequence[Record], sweeps: Sequence[Sweep]) -> set[str]:
    """Workdirs of runs in sweeps over weights, which would crowd Tables 2 and 3.

    W_q and W_v, the paper's choice, stay where other methods ran in the same set-up.
    """
    without = ("method", "learning_rate", "weight_decay")
    compared = {setting(record, without) for record in records if record.method != "lora"}
    return {
        record.workdir
        for sweep in sweeps
        if len({record.weights for record in sweep}) > 1
        for record in sweep
        if record.weights != "qv" or setting(record, without) not in compared
    }


def point(record: Record) -> Point:
    """Weights and rank of a LoRA run."""
    return record.weights or "", record.rank or 0


def sweep_names(sweeps: Sequence[Sweep]) -> list[str]:
    """A name per sweep: model, task, and what sets it apart from other sweeps of the two."""
    names = []
    for sweep in sweeps:
        first = sweep[0]
        alike = [s[0] for s in sweeps if (s[0].task, s[0].model) == (first.task, first.model)]
        apart = distinctions(alike)[alike.index(first)]
        score = f"{first.task} {HEADLINES[first.task].metric}"
        names.append(", ".join(filter(None, (first.model, score, first.evaluated_on, apart))))
    return names


def _our_cells(
    number: int, model: str, column: Column, points: Sequence[Point], by_point: ByKey
) -> list[Cell]:
    cells = []
    for weights, rank in points:
        record = by_point.get((weights, rank))
        cells.append(
            Cell(
                table=number, row=f"{weights_label(weights)}, r={rank}", model=model, method="lora",
                trained=str(record.trained) if record else "", task_or_split=column.task,
                metric=column.metric, **ours_of(column, record),
            )
        )  # fmt: skip
    return cells


def _paper_cells(
    number: int, task: str, points: Sequence[Point], scores: Sequence[str], trained: str
) -> list[Cell]:
    padded = (*scores, *[""] * (len(points) - len(scores)))
    return [
        Cell(
            table=number, row=f"{weights_label(weights)}, r={rank}", model="gpt3-175b",
            method="lora", trained=trained, task_or_split=task, metric="accuracy", paper=score,
        )
        for (weights, rank), score in zip(points, padded, strict=True)
    ]  # fmt: skip


def _in_table_5(sweep: Sweep) -> set[Point]:
    """The points of a sweep that Table 5 shows: those it has in the paper, if they are several."""
    points = {point(record) for record in sweep} & set(POINTS_5)
    return points if len(points) > 1 else set()


def weights_table(sweeps: Sequence[Sweep]) -> Table:
    """Table 5: which attention weights to adapt."""
    lines: list[tuple[str, ...]] = []
    cells: list[Cell] = []
    records: list[Record] = []
    for task, scores in TABLE_5.items():
        line = _paper_cells(5, task, POINTS_5, scores, "18M")
        cells += line
        lines.append((f"GPT-3 175B, {task}", "paper", *(c.of_paper for c in line)))
    for name, sweep in zip(sweep_names(sweeps), sweeps, strict=True):
        points = _in_table_5(sweep)
        shown = [record for record in sweep if point(record) in points]
        records += shown
        column = HEADLINES[sweep[0].task]
        for suffix, by_point in split_lines(shown, point):
            line = _our_cells(5, sweep[0].model, column, POINTS_5, by_point)
            cells += line
            lines.append((name + suffix, "ours", *(c.of_ours for c in line)))
    titles = (f"{weights_label(weights)} r={rank}" for weights, rank in POINTS_5)
    header = ("model, task", "", *titles)
    return Table(number=5, header=header, lines=lines, cells=cells, records=records)


def rank_table(sweeps: Sequence[Sweep]) -> Table:
    """Table 6: the paper's three choices of weights, and every point that Table 5 does not show."""
    paper_weights = dict.fromkeys(weights for _, weights in TABLE_6)
    shown: list[tuple[str, Sweep]] = []
    for name, sweep in zip(sweep_names(sweeps), sweeps, strict=True):
        elsewhere = _in_table_5(sweep)
        new = {point(record)[0] for record in sweep if point(record) not in elsewhere}
        chosen = [r for r in sweep if r.weights in paper_weights or r.weights in new]
        if new or len({point(record) for record in chosen}) > 1:
            shown.append((name, chosen))
    records = [record for _, sweep in shown for record in sweep]
    ranks = [*RANKS_6, *sorted({point(record)[1] for record in records} - set(RANKS_6))]
    lines: list[tuple[str, ...]] = []
    cells: list[Cell] = []
    for (task, weights), scores in TABLE_6.items():
        line = _paper_cells(6, task, [(weights, rank) for rank in ranks], scores, "")
        cells += line
        names = (f"GPT-3 175B, {task}", weights_label(weights), "paper")
        lines.append((*names, *(c.of_paper for c in line)))
    for name, sweep in shown:
        column = HEADLINES[sweep[0].task]
        for weights in dict.fromkeys([*paper_weights, *(point(record)[0] for record in sweep)]):
            points = [(weights, rank) for rank in ranks]
            of_weights = [record for record in sweep if record.weights == weights]
            for suffix, by_point in split_lines(of_weights, point):
                line = _our_cells(6, sweep[0].model, column, points, by_point)
                cells += line
                names = (name + suffix, weights_label(weights), "ours")
                lines.append((*names, *(c.of_ours for c in line)))
    header = ("model, task", "weights", "", *(f"r={rank}" for rank in ranks))
    return Table(number=6, header=header, lines=lines, cells=cells, records=records)
