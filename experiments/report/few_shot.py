"""Few-shot prompting beside tuning, as in the paper's Table 8: runs of experiments.prompting and .nlg."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.paper.columns import COLUMNS, Column
from experiments.paper.scores import TABLE_8
from experiments.report.record import Record, model_label
from experiments.report.tables import Cell, Table, ours_of, split_lines
from experiments.runs import intervals
from lora_jax import reading
from lora_jax.errors import brief
from lora_jax.training.records import spread

KEY = "prompting"  # of the records of experiments.prompting
_TUNED = {"mnli_text": "mnli", "rte_text": "rte"}  # tasks of experiments.nlg by column
_COLUMNS = COLUMNS[8]
_ACCURACY = Column("", "accuracy", "")
_NOTE = (
    "A prompted model chooses the class whose text has the highest log likelihood behind the prompt; ours is "
    "the mean over draws of demonstrations, ± their standard deviation. A tuned one writes the class "
    "greedily, and nothing else, unless the row says that it was asked in prompts as well."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted:
    """A record of experiments.prompting.

    Attributes:
      workdir: label of its folder.
      task: of GLUE.
      model: label, see `model_label`.
      method: of the adapter; `none` without one.
      form: of the prompts.
      shots: demonstrations of each class.
      examples: number of queries.
      classes: number of classes.
      majority: share of the most frequent class.
      limited: whether the queries are a part of the dev set.
      scores: by metric, of every draw.
      ends: of the binomial interval of every draw's accuracy.
    """

    workdir: str
    task: str
    model: str
    method: str
    form: str
    shots: int
    examples: int
    classes: int
    majority: float
    limited: bool
    scores: Mapping[str, tuple[float, ...]]
    ends: tuple[tuple[float, float], ...]

    @property
    def row(self) -> str:
        """What the row of the table is called."""
        asked = f"{self.shots} demonstrations of each class" if self.shots else "zero-shot"
        tuned = "" if self.method == "none" else f"tuned: {self.method}, "
        scored = f", {self.examples:,} dev examples" if self.limited else ""
        return f"{self.model}, {tuned}{asked}, form {self.form}{scored}"


def read(record: reading.Record, label: str) -> Prompted:
    """The record in a result.json.

    Raises:
      FileError: a field is missing, of another type, or can be no result.
    """
    asked, config, test = record.record(KEY), record.record("config"), record.record("test")
    scores = {}
    for name in test.values:
        values = test.record(name).get("values", list)
        if not values or not all(type(v) in (int, float) and 0 <= v <= 1 for v in values):
            raise record.error(f"test.{name}.values", brief(values), "shares from 0 to 1")
        scores[name] = tuple(map(float, values))
    ends = []
    seeds = record.record("seeds")
    for seed in seeds.values:
        found = seeds.record(seed).get("interval", list)
        if len(found) != 2 or not all(type(v) in (int, float) for v in found):
            raise record.error(f"seeds.{seed}.interval", brief(found), "two numbers")
        ends.append((float(found[0]), float(found[1])))
    return Prompted(
        workdir=label, task=record.get("task", str), model=model_label(record.get("model", str)),
        method=record.get("method", str), form=asked.get("form", str),
        shots=asked.integer("shots", 0), examples=asked.integer("examples", 1),
        classes=asked.integer("classes", 2), majority=asked.get("majority", float),
        limited=bool(config.record("data").get("max_eval_examples", int, 0)),
        scores=scores, ends=tuple(ends),
    )  # fmt: skip


def table(prompted: Sequence[Prompted], records: Sequence[Record]) -> Table:
    """Table 8: the paper's rows, prompted models, and what the same models reach when they are tuned.

    Args:
      prompted: records of experiments.prompting.
      records: all others, of which those on the same models and tasks are shown.
    """
    models = {each.model for each in prompted}
    tuned = [r for r in records if r.task in _TUNED and r.model in models and r.split]
    result = Table(
        number=8, header=("row", "", *(column.title for column in _COLUMNS)), lines=[], cells=[],
        records=tuned, notes=[_NOTE] if prompted else [], findings=_findings(prompted),
    )  # fmt: skip
    for row, scores in TABLE_8.items():
        printed = dict(zip(("mnli", "rte"), scores, strict=True))
        line = [_cell(row, "gpt3-175b", column.task) for column in _COLUMNS]
        line = [
            dataclasses.replace(cell, paper=printed.get(cell.task_or_split, "")) for cell in line
        ]
        result.cells.extend(line)
        result.lines.append((f"GPT-3 175B, {row}", "paper", *(cell.of_paper for cell in line)))
    for row, by_task in _rows(prompted):
        _add(result, row, {task: _of_prompted(row, each) for task, each in by_task.items()})
    for row, of_row in _tuned_rows(tuned).items():
        for suffix, found in split_lines(of_row, lambda record: _TUNED[record.task]):
            cells = {
                str(task): dataclasses.replace(
                    _cell(row, record.model, str(task)), method=record.method,
                    trained=str(record.trained), **ours_of(_ACCURACY, record, mean=True),
                )
                for task, record in found.items()
            }  # fmt: skip
            _add(result, row, cells, suffix)
    return result


def _add(result: Table, row: str, cells: Mapping[str, Cell], suffix: str = "") -> None:
    line = [cells.get(column.task) or _cell(row, "", column.task) for column in _COLUMNS]
    result.cells.extend(line)
    result.lines.append((row + suffix, "ours", *(cell.of_ours for cell in line)))


def _rows(prompted: Sequence[Prompted]) -> list[tuple[str, dict[str, Prompted]]]:
    """Every row's records by task; a second record of one row and task has a line of its own."""
    found: list[tuple[str, dict[str, Prompted]]] = []
    for each in prompted:
        free = [own for row, own in found if row == each.row and each.task not in own]
        if free:
            free[0][each.task] = each
        else:
            found.append((each.row, {each.task: each}))
    return found


def _tuned_rows(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        how = "writes the class" if record.examples is None else f"tuned: {record.label}"
        trained = f", {record.examples:,} examples" if record.examples else ""
        scored = f", scored on {record.evaluated_on}" * bool(record.evaluated_on)
        found.setdefault(f"{record.model}, {how}{trained}{scored}", []).append(record)
    return found


def _cell(row: str, model: str, task: str) -> Cell:
    return Cell(
        table=8, row=row, model=model, method="none", trained="", task_or_split=task,
        metric="accuracy",
    )  # fmt: skip


def _of_prompted(row: str, each: Prompted) -> Cell:
    over = spread([100 * value for value in each.scores["accuracy"]])
    several = len(over["values"]) > 1
    return dataclasses.replace(
        _cell(row, each.model, each.task), method=each.method, ours=f"{over['mean']:.2f}",
        ours_std=f"{over['std']:.2f}" if several else "", seeds=str(len(over["values"])),
        workdir=each.workdir,
    )  # fmt: skip


def _findings(prompted: Sequence[Prompted]) -> str:
    """A Markdown list: of every prompted model its scores with intervals, and what chance would give."""
    return "\n".join(f"- {_words(each)}" for each in prompted)


def _words(each: Prompted) -> str:
    accuracies = [100 * value for value in each.scores["accuracy"]]
    if len(set(accuracies)) > 1:
        over = intervals.mean(accuracies)
        low, high = over.value - over.half, over.value + over.half
        told = f"mean {over.value:.1f}, 95% interval over {len(accuracies)} draws {low:.1f} to {high:.1f}"
    else:
        low, high = (100 * end for end in each.ends[0])
        draws = f" in each of {len(accuracies)} draws" if len(accuracies) > 1 else ""
        told = f"{accuracies[0]:.1f}{draws}, 95% interval {low:.1f} to {high:.1f} (binomial)"
    other = "; ".join(
        f"{name.removeprefix('accuracy_').replace('_', ' ')} {100 * sum(v) / len(v):.1f}"
        for name, v in each.scores.items()
        if name != "accuracy"
    )
    return (
        f"`{each.workdir}`: {each.row}, {each.task}: {told}; by other rules: {other}; chance "
        f"{100 / each.classes:.1f}, the most frequent class {100 * each.majority:.1f}, "
        f"{each.examples:,} queries"
    )
