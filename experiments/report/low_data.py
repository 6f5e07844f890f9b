"""Runs on little training data beside the paper's Table 16, and which of its orders of methods they have."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from experiments.paper.columns import HEADLINES, Column
from experiments.paper.scores import SIZES_16, SPREAD_16, TABLE_16
from experiments.report import orders
from experiments.report.record import Record
from experiments.report.settings import pooled
from experiments.report.tables import Cell, Table, ours_of, split_lines
from experiments.runs import intervals, text_tables
from experiments.runs.intervals import Interval

METHODS = ("lora", "full", "prefix_layer", "prefix_embed")
PAPER_MODEL = "GPT-3 175B"
_LABELS = {
    "full": "Fine-Tune",
    "prefix_embed": "PrefixEmbed",
    "prefix_layer": "PrefixLayer",
    "lora": "LoRA",
}
_MNLI = ("mnli", "mnli_text")
_NOTE = (
    "Ours here is the mean over seeds for every model, ± their standard deviation; classifiers are scored "
    "at their best epoch on the dev examples themselves, decoders at the epoch of the lowest validation "
    "loss. Bars in the plot are 95% intervals of the mean over seeds (Student's t); of several set-ups at "
    "one point the best is drawn."
)
_READING = """\
Differences in points, paired by seed: the mean, and in brackets its 95% interval (Student's t). An order of
the paper is confirmed where the interval has the paper's sign alone, refuted where it has the other sign
alone, and open where it contains 0; differences of the paper within its spread over seeds (±0.3) are no
order. Each interval is at 95% by itself: of twenty without any effect one is wrong."""


class Setup(NamedTuple):
    """What the runs of one panel have in common."""

    model: str
    task: str
    evaluated_on: str

    @property
    def title(self) -> str:
        """As pages show it."""
        return ", ".join(filter(None, (self.model, self.task, self.evaluated_on)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How two methods differ on training sets of one size.

    Attributes:
      setup: of the runs.
      size: number of training examples.
      one, other: methods; positive differences mean that `one` is better.
      paper: the paper's difference, in points; None where it has none.
      ours: the mean difference; None if it could not be measured.
      seeds: that both have.
      doubt: why it could not be measured; "" if it was.
    """

    setup: Setup
    size: int
    one: str
    other: str
    paper: float | None
    ours: Interval | None
    seeds: int
    doubt: str = ""

    @property
    def verdict(self) -> orders.Verdict | Literal[""]:
        """What ours says of the paper's order; "" where the paper has no such size or task."""
        return "" if self.paper is None else orders.verdict(self.paper, self.ours, SPREAD_16)


def is_low_data(record: Record) -> bool:
    """Whether a run had as many training examples of each class, which other tables do not show."""
    return bool(record.config["data"].get("balanced")) and record.examples is not None


def by_setup(records: Sequence[Record]) -> dict[Setup, list[Record]]:
    """Runs on balanced data, and the runs of the same set-ups on all of MNLI."""
    found: dict[Setup, list[Record]] = {}
    for record in filter(is_low_data, records):
        if column_of(record.task).metric in record.scores:
            found.setdefault(_setup(record), []).append(record)
    for record in records:
        whole = record.examples == SIZES_16[-1] and record.method in METHODS
        if whole and record.task in _MNLI and _setup(record) in found:
            found[_setup(record)].append(record)
    return found


def _setup(record: Record) -> Setup:
    return Setup(record.model, record.task, record.evaluated_on)


def table(records: Sequence[Record]) -> Table:
    """Table 16: the paper's rows, and ours by model, task and method."""
    groups = by_setup(records)
    ours = [record for group in groups.values() for record in group]
    sizes = sorted({*SIZES_16, *(r.examples for r in ours if r.examples is not None)})
    result = Table(
        number=16,
        header=("model, task", "method", "", *(f"{size:,}" for size in sizes)),
        lines=[], cells=[], records=ours, notes=[_NOTE] if ours else [],
        findings=_findings(differences(groups)),
    )  # fmt: skip
    for method, scores in TABLE_16.items():
        printed = dict(zip(SIZES_16, scores, strict=True))
        line = [
            _cell(PAPER_MODEL, method, _LABELS[method], "mnli", size, paper=printed.get(size, ""))
            for size in sizes
        ]
        result.cells.extend(line)
        name = (f"{PAPER_MODEL}, mnli", _LABELS[method])
        result.lines.append((*name, "paper", *(cell.of_paper for cell in line)))
    for setup, group in groups.items():
        for label, of_method in _by_label(group).items():
            for suffix, by_size in split_lines(of_method, lambda record: record.examples):
                line = [
                    _our_cell(setup, label, of_method[0].method, size, by_size.get(size))
                    for size in sizes
                ]
                result.cells.extend(line)
                name = (setup.title + suffix, label)
                result.lines.append((*name, "ours", *(cell.of_ours for cell in line)))
    return result


def _by_label(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of every method, in the order of the paper's table, others behind."""
    order = [*TABLE_16, *sorted({r.method for r in records} - set(TABLE_16))]
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: order.index(r.method)):
        found.setdefault(record.label, []).append(record)
    return found


def _cell(model: str, method: str, label: str, task: str, size: int, *, paper: str = "") -> Cell:
    return Cell(
        table=16, row=f"{label}, {size} examples", model=model, method=method, trained="",
        task_or_split=task, metric="accuracy", paper=paper,
    )  # fmt: skip


def _our_cell(setup: Setup, label: str, method: str, size: int, record: Record | None) -> Cell:
    column = column_of(setup.task)
    empty = _cell(setup.model, method, label, setup.task, size)
    trained = str(record.trained) if record else ""
    fields = ours_of(column, record, mean=True)
    return dataclasses.replace(empty, trained=trained, metric=column.metric, **fields)


def column_of(task: str) -> Column:
    """The score that stands for a task; GLUE's tasks as text have their accuracy."""
    return HEADLINES.get(task, Column(task, "accuracy", task))


def mean_of(record: Record, column: Column) -> Interval:
    """The mean over seeds with its 95% interval, in the unit of the tables; NaN where it is unknown."""
    scale = 100 if column.percent else 1
    return intervals.over_seeds([scale * value for value in record.scores[column.metric]])


def differences(groups: dict[Setup, list[Record]]) -> list[Difference]:
    """All pairs of the four methods at all sizes at which there are two of them."""
    found = []
    for setup, group in groups.items():
        results = pooled(group)
        for size in sorted({r.examples for r in results if r.examples is not None}):
            at_size = [r for r in results if r.examples == size]
            for one, other in itertools.combinations(METHODS, 2):
                pair = [[r for r in at_size if r.method == name] for name in (one, other)]
                if all(pair):
                    found.append(_difference(setup, size, pair[0], pair[1]))
    return found


def _difference(
    setup: Setup, size: int, ones: Sequence[Record], others: Sequence[Record]
) -> Difference:
    one, other, column = ones[0], others[0], column_of(setup.task)
    scores = [
        dict(zip(record.seeds, record.scores[column.metric], strict=True))
        for record in (one, other)
    ]
    shared = sorted(scores[0].keys() & scores[1].keys())
    scale = 100 if column.percent else 1
    values = [scale * (scores[0][seed] - scores[1][seed]) for seed in shared]
    several = [rows[0].method for rows in (ones, others) if len(rows) > 1]
    doubt = (
        f"several set-ups of {' and '.join(several)}" if several
        else "no seed in common" if not values
        else "a seed diverged" if not all(map(math.isfinite, values))
        else ""
    )  # fmt: skip
    ours = None if doubt else intervals.over_seeds(values)
    if ours is not None and math.isnan(ours.half):
        doubt = "one seed has no interval"
    return Difference(
        setup=setup, size=size, one=one.method, other=other.method,
        paper=_of_paper(setup.task, size, one.method, other.method), ours=ours, seeds=len(shared),
        doubt=doubt,
    )  # fmt: skip


def _of_paper(task: str, size: int, one: str, other: str) -> float | None:
    if task not in _MNLI or size not in SIZES_16:
        return None
    at = SIZES_16.index(size)
    return float(TABLE_16[one][at]) - float(TABLE_16[other][at])


def _findings(found: Sequence[Difference]) -> str:
    """The differences as Markdown, and how many orders of the paper each set-up has; "" without any."""
    if not found:
        return ""
    header = ("model, task", "examples", "difference", "paper", "ours", "seeds", "verdict")
    counts = []
    for setup in dict.fromkeys(each.setup for each in found):
        verdicts = [each.verdict for each in found if each.setup == setup]
        told = ", ".join(
            f"{verdicts.count(name)} {name}" for name in ("confirmed", "refuted", "open")
        )
        counts.append(f"- {setup.title}: of the paper's orders {told}.")
    rows = [_row(each) for each in found]
    return "\n\n".join([_READING, text_tables.pipe_table(header, rows), "\n".join(counts)])


def _row(each: Difference) -> list[str]:
    ours = "–"
    if each.ours is not None:
        ours = f"{each.ours.value:+.2f}"
        if not math.isnan(each.ours.half):
            low, high = each.ours.value - each.ours.half, each.ours.value + each.ours.half
            ours += f" [{low:+.2f}, {high:+.2f}]"
    verdict = f"{each.verdict}: {each.doubt}".strip(": ") if each.doubt else each.verdict
    return [
        each.setup.title, f"{each.size:,}", f"{each.one} - {each.other}",
        "–" if each.paper is None else f"{each.paper:+.1f}", ours, str(each.seeds), verdict or "–",
    ]  # fmt: skip
