"""Rank sweeps: what LoRA reaches at every rank, with the other values of its set-up searched too.

Tables 6 and 18 compare ranks at one learning rate and alpha. A sweep over ranks tries several at every
rank, since the best ones may differ, so here a rank has its best run and its best set-up. The runs of one
set-up differ in nothing but chance: the seed and, where it has a seed of its own, the order of the data.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from experiments.paper.scores import Column
from experiments.report import text_tables
from experiments.report.records import Record, distinctions, setting, weights_label
from experiments.report.sweeps import HEADLINES
from experiments.report.tables import MISSING
from lora_jax.training.records import spread

# What a sweep over ranks varies, seeds apart; all else is equal in the runs of one.
SWEPT = (
    "method.rank", "method.alpha", "method.scaling", "method.targets", "method.parts", "method.fused",
    "method.fused_sizes", "method.dropout", "method.init", "method.std", "learning_rate", "data.order_seed",
)  # fmt: skip
# What a set-up is beside rank and weights; in records without a field it had the default.
_DEFAULTS = {"alpha": None, "scaling": "alpha/r", "dropout": 0.0, "init": "kaiming", "std": 0.02}
FIELDS = ("learning_rate", *_DEFAULTS)
_INTRODUCTION = """\
LoRA runs that differ in nothing but rank, alpha, scaling, adapted weights, learning rate, dropout, start
of A (init, std), order of the data and seed. Scores are in the unit of the tables above; the paper's are in
Tables 6 and 18. The best run has the highest score of all at a rank. The best set-up (learning rate, alpha
and so on) has the highest median over seeds, also on data-to-text; ± is their standard deviation. Both are
chosen by the score shown: on GLUE the dev set's, on data-to-text BLEU of the decoded split; more runs make
the best one higher. A diverged run is the worst in that choice, and in no median, deviation or range."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed of a record.

    Attributes:
      record: that it is in.
      seed: of all that is random but for `order`, if the order of the data has a seed of its own.
      score: the task's headline in the unit of the tables; NaN if it diverged.
      set_up: values of `FIELDS`; text with slashes where the targets differ in one.
    """

    record: Record
    seed: str
    order: int | None
    score: float
    set_up: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Point:
    """All runs of one choice of weights at one rank.

    Attributes:
      weights: letters of q, k, v, o, or the targets as text if others are adapted.
      rank: r.
      runs: at least one.
    """

    weights: str
    rank: int
    runs: tuple[Run, ...]

    @property
    def best(self) -> Run | None:
        """The run of the highest score, the first of several; None if all diverged."""
        return max(finite(self.runs), key=lambda run: run.score, default=None)

    @functools.cached_property
    def chosen(self) -> list[Run]:
        """The runs of the best set-up, the diverged among them."""
        by_set_up: dict[Hashable, list[Run]] = {}
        for run in self.runs:
            by_set_up.setdefault(run.set_up, []).append(run)
        return max(by_set_up.values(), key=_merit)

    @property
    def scores(self) -> list[float]:
        """Of the best set-up, without the diverged."""
        return [run.score for run in finite(self.chosen)]

    @property
    def median(self) -> float:
        """Of these scores; there must be one."""
        return statistics.median(self.scores)


@dataclasses.dataclass(frozen=True)
class RankSweep:
    """A sweep.

    Attributes:
      name: model, task, and what sets it apart from other sweeps of the two.
      column: the headline score of the task.
      points: by weights and rank, in order.
      records: that it is made of.
      repeats: workdirs with runs left out, since weights, rank, set-up and seed were there before.
    """

    name: str
    column: Column
    points: tuple[Point, ...]
    records: tuple[Record, ...]
    repeats: tuple[str, ...]

    def values(self, field: str) -> list[Any]:
        """The different values of one of `FIELDS`, numbers in order."""
        at = FIELDS.index(field)
        found = {run.set_up[at] for point in self.points for run in point.runs}
        return sorted(found, key=lambda v: (isinstance(v, str), v is None, v or 0))


def finite(runs: Iterable[Run]) -> list[Run]:
    """The runs that did not diverge."""
    return [run for run in runs if math.isfinite(run.score)]


def _merit(runs: Sequence[Run]) -> tuple[float, float, int]:
    """Orders set-ups: one whose seeds diverge must not win by the seeds that are left."""
    good = [run.score for run in finite(runs)]
    lost = [-math.inf] * (len(runs) - len(good))
    return statistics.median(good + lost), statistics.median(good or lost), len(good)


def sweeps(records: Sequence[Record]) -> list[RankSweep]:
    """The sweeps: LoRA runs with a headline score in one set-up but for `SWEPT`, of several ranks."""
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        column = HEADLINES.get(record.task)
        if record.method == "lora" and record.rank and column and column.metric in record.scores:
            key = record.task, record.model, setting(record, SWEPT)
            groups.setdefault(key, []).append(record)
    found = []  # without two ranks of one choice of weights nothing is a curve
    for own in groups.values():
        places = {(_weights(record), record.rank) for record in own}
        if len({weights for weights, _ in places}) < len(places):
            found.append(own)
    # Of the config only what a sweep has in common may tell it from others.
    common = [
        dataclasses.replace(own[0], config=json.loads(setting(own[0], SWEPT))) for own in found
    ]
    result = []
    for own, one in zip(found, common, strict=True):
        alike = [o for o in common if (o.task, o.model) == (one.task, one.model)]
        more = next(d for o, d in zip(alike, distinctions(alike), strict=True) if o is one)
        name = (one.model, f"{one.task} {HEADLINES[one.task].metric}", own[0].evaluated_on, more)
        result.append(_sweep(", ".join(filter(None, name)), own))
    return result


def _sweep(name: str, records: Sequence[Record]) -> RankSweep:
    column = HEADLINES[records[0].task]
    scale = 100 if column.percent else 1
    points: dict[tuple[str, int], dict[Hashable, Run]] = {}
    repeats = []
    for record in records:
        own = points.setdefault((_weights(record), record.rank or 0), {})
        set_up, order = _set_up(record), record.config["data"].get("order_seed")
        for seed, value in zip(record.seeds, record.scores[column.metric], strict=True):
            run = Run(record, seed, order, scale * value, set_up)
            if own.setdefault((set_up, seed, order), run) is not run:
                repeats.append(record.workdir)
    places = sorted(points, key=lambda place: (weights_order(place[0]), place[1]))
    made = tuple(Point(*place, tuple(points[place].values())) for place in places)
    return RankSweep(name, column, made, tuple(records), tuple(dict.fromkeys(repeats)))


def _per_target(record: Record) -> list[tuple[str, dict[str, Any]]]:
    """The arguments of every target, as `methods.lora` reads them."""
    method = record.config["method"]
    targets = method["targets"]
    if not isinstance(targets, Mapping):
        targets = {t: {} for t in ([targets] if isinstance(targets, str) else targets)}
    return [(pattern, {**_DEFAULTS, **method, **own}) for pattern, own in targets.items()]


def _weights(record: Record) -> str:
    if record.weights:
        return record.weights
    # The ranks of one choice must have one text, so of the arguments only the parts count.
    parts = [(pattern, "".join(own.get("parts") or ())) for pattern, own in _per_target(record)]
    return ", ".join(f"{pattern} ({part})" if part else pattern for pattern, part in parts)


def weights_order(weights: str) -> tuple[int, list[int], str]:
    """A sort key: few weights before many, in the order q, k, v, o; other targets last."""
    if not set(weights) <= set("qkvo"):
        return 5, [], weights
    return len(weights), ["qkvo".index(letter) for letter in weights], ""


def weights_text(weights: str) -> str:
    """`qv` -> `W_q, W_v`; other targets stay."""
    return weights_label(weights) if set(weights) <= set("qkvo") else weights


def _set_up(record: Record) -> tuple[Any, ...]:
    targets = [own for _, own in _per_target(record)]
    for own in targets:
        own["alpha"] = record.rank if own["alpha"] is None else own["alpha"]
        own["std"] = own["std"] if own["init"] == "gaussian" else None  # else it is of no effect
    values = [list(dict.fromkeys(own[name] for own in targets)) for name in _DEFAULTS]
    shown = (own[0] if len(own) == 1 else " / ".join(map(_text, own)) for own in values)
    return record.config["learning_rate"], *shown


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:g}"


def _counted(runs: Sequence[Run]) -> str:
    diverged = len(runs) - len(finite(runs))
    return f"{len(runs)}" + f" ({diverged} diverged)" * bool(diverged)


def markdown(found: Sequence[RankSweep], describe: Callable[[Record], str], image: str) -> str:
    """The section of the report; `describe` says what runs have in common, `image` is a path or ""."""
    parts = ["## Rank sweeps", _INTRODUCTION]
    for sweep in found:
        lines = [f"- {line}" for line in dict.fromkeys(map(describe, sweep.records))]
        tried = {field: [v for v in sweep.values(field) if v is not None] for field in FIELDS}
        shown = [f"{_title(f)} {', '.join(map(_text, own))}" for f, own in tried.items() if own]
        lines.append(f"- Tried: {'; '.join(shown)}")
        if names := ", ".join(f"`{name}`" for name in sweep.repeats):
            lines.append(f"- Left out, of a set-up and seed that another run has: {names}")
        parts += [f"### {sweep.name}", _grid(sweep), "\n".join(lines)]
    if image:
        parts.append(f"![Score against rank]({image})")
    return "\n\n".join(parts)


def _title(field: str) -> str:
    return field.replace("_", " ")


def _grid(sweep: RankSweep) -> str:
    digits = 2 if sweep.column.percent else 4
    shown = [f for f in FIELDS if f in ("learning_rate", "alpha") or len(sweep.values(f)) > 1]
    titles = [_title(field) for field in shown]
    header = [
        "weights", "rank", "trained", "runs", "best run", *titles, "seed", "workdir",
        f"best set-up: {', '.join(titles)}", "median", "min to max", "seeds",
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)]
    for point in sweep.points:
        best, shown_weights = point.best, weights_text(point.weights)
        if shown_weights == point.weights:  # a pattern: nothing in it is Markdown
            shown_weights = f"`{shown_weights}`".replace("|", "\\|")
        trained = f"{point.runs[0].record.trained:,}"
        line = [shown_weights, str(point.rank), trained, _counted(point.runs)]
        if best is not None:
            own = [
                [_text(value) for f, value in zip(FIELDS, run.set_up, strict=True) if f in shown]
                for run in (best, point.chosen[0])
            ]
            order = "" if best.order is None else f", order {best.order}"
            line += [f"{best.score:.{digits}f}", *own[0], best.seed + order]
            result = {
                k: f"{v:.{digits}f}" for k, v in spread(point.scores).items() if k != "values"
            }
            line += [f"`{best.record.workdir}`", ", ".join(own[1])]
            line.append(result["median"] + f" ± {result['std']}" * (len(point.scores) > 1))
            line += [f"{result['min']} to {result['max']}", _counted(point.chosen)]
        lines.append(line + [MISSING] * (len(header) - len(line)))
    return text_tables.grid(lines)


def csv_text(found: Sequence[RankSweep]) -> str:
    """One line per sweep, weights and rank; fields of the best set-up begin with `set_up_`."""
    rows = []
    for sweep in found:
        for point in sweep.points:
            best, one, seeds = point.best, point.runs[0].record, len(point.chosen)
            values, none = spread(point.scores) if best else {}, (None,) * len(FIELDS)
            row: dict[str, Any] = {
                "sweep": sweep.name, "model": one.model, "task": one.task,
                "metric": sweep.column.metric, "weights": point.weights, "rank": point.rank,
                "trained": one.trained, "runs": len(point.runs),
                "diverged": len(point.runs) - len(finite(point.runs)),
                "best": best and best.score, "seed": best and best.seed,
                "order_seed": best and best.order, "workdir": best and best.record.workdir,
            }  # fmt: skip
            set_ups = (best.set_up, point.chosen[0].set_up) if best else (none, none)
            for start, own in zip(("", "set_up_"), set_ups, strict=True):
                row |= {start + field: v for field, v in zip(FIELDS, own, strict=True)}
            row |= {f"seeds_{name}": values.get(name) for name in ("median", "std", "min", "max")}
            row |= {"seeds": seeds, "seeds_diverged": seeds - len(point.scores)}
            rows.append(row)
    return text_tables.csv_text(rows)
