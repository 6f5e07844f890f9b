"""Sweeps over LoRA's weights and rank beside the paper's: Tables 5, 6 and 18."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from experiments.paper.scores import COLUMNS, POINTS_5, RANKS_6, TABLE_5, TABLE_6, TABLE_18, Column
from experiments.report.records import (
    Record,
    distinctions,
    pooled,
    setting,
    swept_setting,
    weights_label,
)
from experiments.report.tables import OWN, ByKey, Cell, Table, ours_of, paper_of, split_lines

_HEADLINES = ("accuracy", "matthews", "pearson", "bleu")
# The score that stands for a task.
HEADLINES = {
    c.task: c for number in (2, 3, 13, 14) for c in COLUMNS[number] if c.metric in _HEADLINES
}


def sweeps(records: Sequence[Record]) -> list[list[Record]]:
    """LoRA runs on attention weights that differ in weights, rank and alpha only."""
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        if record.weights and record.task in HEADLINES:
            groups.setdefault(swept_setting(record), []).append(record)
    return [own for own in groups.values() if len({(r.weights, r.rank) for r in own}) > 1]


def only_in_sweeps(records: Sequence[Record], found: Sequence[Sequence[Record]]) -> set[str]:
    """Workdirs of a sweep over weights, which would crowd Tables 2 and 3.

    W_q and W_v, the paper's choice, stay where other methods ran in the same set-up.
    """
    without = ("method", "learning_rate", "weight_decay")
    compared = {setting(record, without) for record in records if record.method != "lora"}
    return {
        r.workdir
        for own in found
        if len({r.weights for r in own}) > 1
        for r in own
        if r.weights != "qv" or setting(r, without) not in compared
    }


def _names(found: Sequence[Sequence[Record]]) -> list[str]:
    """A name per sweep: model, task, and what sets it apart from others of the same two."""
    result = []
    for own in found:
        one = own[0]
        alike = [o[0] for o in found if (o[0].task, o[0].model) == (one.task, one.model)]
        more = distinctions(alike)[alike.index(one)]
        part = f"{one.task} {HEADLINES[one.task].metric}"
        result.append(", ".join(filter(None, (one.model, part, one.evaluated_on, more))))
    return result


def _point(record: Record) -> tuple[str, int]:
    return record.weights or "", record.rank or 0


def _point_cells(
    number: int, model: str, column: Column, points: Sequence[tuple[str, int]], found: ByKey
) -> list[Cell]:
    return [
        Cell(
            number, f"{weights_label(w)}, r={r}", model, "lora",
            str(found[w, r].trained) if (w, r) in found else "",
            column.task, column.metric, **ours_of(column, found.get((w, r))),
        )
        for w, r in points
    ]  # fmt: skip


def _paper_cells(
    number: int, task: str, points: Sequence[tuple[str, int]], scores: Sequence[str], trained: str
) -> list[Cell]:
    padded = (*scores, *[""] * (len(points) - len(scores)))
    return [
        Cell(
            number, f"{weights_label(w)}, r={r}", "gpt3-175b", "lora", trained, task, "accuracy",
            score,
        )
        for (w, r), score in zip(points, padded, strict=True)
    ]  # fmt: skip


def _in_table_5(own: Sequence[Record]) -> set[tuple[str, int]]:
    """The points that Table 5 has, if they are several."""
    points = {_point(record) for record in own} & set(POINTS_5)
    return points if len(points) > 1 else set()


def weights_table(found: Sequence[Sequence[Record]]) -> Table:
    """Table 5."""
    header = ("model, task", "", *(f"{weights_label(w)} r={r}" for w, r in POINTS_5))
    lines: list[tuple[str, ...]] = []
    cells, records = [], []
    for task, scores in TABLE_5.items():
        line = _paper_cells(5, task, POINTS_5, scores, "18M")
        cells += line
        lines.append((f"GPT-3 175B, {task}", "paper", *(c.of_paper for c in line)))
    for name, own in zip(_names(found), found, strict=True):
        shown = [record for record in own if _point(record) in _in_table_5(own)]
        records += shown
        for suffix, by_point in split_lines(shown, _point):
            line = _point_cells(5, own[0].model, HEADLINES[own[0].task], POINTS_5, by_point)
            cells += line
            lines.append((name + suffix, "ours", *(c.of_ours for c in line)))
    return Table(5, header, lines, cells, records, [])


def rank_table(found: Sequence[Sequence[Record]]) -> Table:
    """Table 6: the paper's three choices of weights, and every point that Table 5 does not have."""
    paper_weights = dict.fromkeys(w for _, w in TABLE_6)
    chosen: list[tuple[str, list[Record]]] = []
    for name, own in zip(_names(found), found, strict=True):
        new = {_point(r)[0] for r in own if _point(r) not in _in_table_5(own)}
        shown = [r for r in own if r.weights in paper_weights or r.weights in new]
        if new or len({_point(r) for r in shown}) > 1:
            chosen.append((name, shown))
    ranks = [*RANKS_6, *sorted({_point(r)[1] for _, own in chosen for r in own} - set(RANKS_6))]
    header = ("model, task", "weights", "", *(f"r={rank}" for rank in ranks))
    lines: list[tuple[str, ...]] = []
    cells = []
    for (task, weights), scores in TABLE_6.items():
        line = _paper_cells(6, task, [(weights, rank) for rank in ranks], scores, "")
        cells += line
        lines.append(
            (f"GPT-3 175B, {task}", weights_label(weights), "paper", *(c.of_paper for c in line))
        )
    for name, own in chosen:
        for weights in dict.fromkeys([*paper_weights, *(_point(r)[0] for r in own)]):
            for suffix, by_point in split_lines([r for r in own if r.weights == weights], _point):
                points = [(weights, rank) for rank in ranks]
                line = _point_cells(6, own[0].model, HEADLINES[own[0].task], points, by_point)
                cells += line
                lines.append(
                    (name + suffix, weights_label(weights), "ours", *(c.of_ours for c in line))
                )
    return Table(6, header, lines, cells, [r for _, own in chosen for r in own], [])


def gpt2_rank_table(records: Sequence[Record]) -> Table:
    """Table 18: LoRA's rank on E2E; ours where there are several ranks of one set-up."""
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        if record.task == "e2e" and record.weights:
            groups.setdefault((*swept_setting(record), record.weights), []).append(record)
    found = [own for own in groups.values() if len({record.rank for record in own}) > 1]
    lines: list[tuple[str, ...]] = []
    cells = []

    def add(names: tuple[str, str, str], record: Record | None, scores: Sequence[str]) -> None:
        label, model, text = names
        trained = f"{record.trained:,}" if record else ""
        line = [
            Cell(18, label, model, "lora", str(record.trained) if record else "", "e2e", column.metric,
                 **(paper_of(scores[i]) if scores else {}), **ours_of(column, record))
            for i, column in enumerate(COLUMNS[18])
        ]  # fmt: skip
        cells.extend(line)
        if scores:
            lines.append((text, "", "paper", *(c.of_paper for c in line)))
            text = ""
        lines.append((text, trained, "ours", *(c.of_ours for c in line)))

    paper = [own for own in found if own[0].model.rpartition("/")[2] == "gpt2-medium"
             and own[0].weights == "qv" and not own[0].evaluated_on]  # fmt: skip
    of_paper = [record for own in paper for record in own]
    for rank, scores in TABLE_18.items():
        fitting = pooled(r for r in of_paper if r.rank == rank)
        add(
            (f"r={rank}", "gpt2-medium", f"r={rank}"),
            fitting[0] if len(fitting) == 1 else None,
            scores,
        )
        for record in fitting if len(fitting) > 1 else []:
            add((f"r={rank}", "gpt2-medium", f"r={rank} [`{record.workdir}`]"), record, ())
    others = [own for own in found if own not in paper]
    others += [[r] for r in of_paper if r.rank not in TABLE_18]
    lines += [(OWN,)] if others else []
    for name, own in zip(_names(others), others, strict=True):
        name = name.replace("e2e bleu", weights_label(own[0].weights or ""))
        for record in sorted(pooled(own), key=_point):
            twice = sum(_point(r) == _point(record) for r in pooled(own)) > 1
            suffix = f" [`{record.workdir}`]" * twice
            label = f"r={record.rank}"
            add((label, record.model, f"{name}, {label}{suffix}"), record, ())
    titles = ("rank", "trained", "", *(column.title for column in COLUMNS[18]))
    return Table(18, titles, lines, cells, [r for own in found for r in own], [])
