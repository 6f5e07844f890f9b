"""Rank sweeps as a section of the report, and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.report.lora_set_up import FIELDS, value_text, weights_text
from experiments.report.rank_sweeps import Point, RankSweep, Run, finite
from experiments.report.record import Record
from experiments.report.tables import MISSING
from experiments.runs import text_tables
from lora_jax.training.records import spread

_INTRODUCTION = """\
LoRA runs that differ in nothing but rank, alpha, scaling, adapted weights, learning rate, dropout, start
of A (init, std), order of the data and seed. Scores are in the unit of the tables above; the paper's are in
Tables 6 and 18. The best run has the highest score of all at a rank. The best set-up (learning rate, alpha
and so on) has the highest median over seeds, also on data-to-text; ± is their standard deviation. Both are
chosen by the score shown: on GLUE the dev set's, on data-to-text BLEU of the decoded split; more runs make
the best one higher. A diverged run is the worst in that choice, and in no median, deviation or range."""


def markdown(sweeps: Sequence[RankSweep], describe: Callable[[Record], str], image: str) -> str:
    """The section of the report.

    Args:
      sweeps: at least one.
      describe: says what runs have in common.
      image: path of the figure; "" without one.
    """
    parts = ["## Rank sweeps", _INTRODUCTION]
    for sweep in sweeps:
        lines = [f"- {line}" for line in dict.fromkeys(map(describe, sweep.records))]
        tried = {f: [v for v in sweep.values(f) if v is not None] for f in FIELDS}
        shown = [f"{_title(f)} {', '.join(map(value_text, vs))}" for f, vs in tried.items() if vs]
        lines.append(f"- Tried: {'; '.join(shown)}")
        if names := ", ".join(f"`{name}`" for name in sweep.repeats):
            lines.append(f"- Left out, of a set-up and seed that another run has: {names}")
        parts += [f"### {sweep.name}", _table(sweep), "\n".join(lines)]
    if image:
        parts.append(f"![Score against rank]({image})")
    return "\n\n".join(parts)


def _title(field: str) -> str:
    return field.replace("_", " ")


def _counted(runs: Sequence[Run]) -> str:
    diverged = len(runs) - len(finite(runs))
    return f"{len(runs)}" + f" ({diverged} diverged)" * bool(diverged)


def _table(sweep: RankSweep) -> str:
    digits = 2 if sweep.column.percent else 4
    shown = [f for f in FIELDS if f in ("learning_rate", "alpha") or len(sweep.values(f)) > 1]
    titles = [_title(field) for field in shown]
    header = [
        "weights", "rank", "trained", "runs", "best run", *titles, "seed", "workdir",
        f"best set-up: {', '.join(titles)}", "median", "min to max", "seeds",
    ]  # fmt: skip
    rows = []
    for point in sweep.points:
        cells = [*_place_cells(point), *_score_cells(point, shown, digits)]
        rows.append(cells + [MISSING] * (len(header) - len(cells)))
    return text_tables.pipe_table(header, rows)


def _place_cells(point: Point) -> list[str]:
    weights = weights_text(point.weights)
    if weights == point.weights:  # a pattern: nothing in it is Markdown
        weights = f"`{weights}`".replace("|", "\\|")
    trained = f"{point.runs[0].record.trained:,}"
    return [weights, str(point.rank), trained, _counted(point.runs)]


def _score_cells(point: Point, fields: Sequence[str], digits: int) -> list[str]:
    """The best run and the best set-up; nothing if all runs diverged."""
    best = point.best
    if best is None:
        return []
    best_set_up, chosen_set_up = (
        [value_text(v) for f, v in zip(FIELDS, run.set_up, strict=True) if f in fields]
        for run in (best, point.chosen[0])
    )
    order = "" if best.order is None else f", order {best.order}"
    over_seeds = spread(point.scores)
    median, std, low, high = (
        f"{over_seeds[name]:.{digits}f}" for name in ("median", "std", "min", "max")
    )
    return [
        f"{best.score:.{digits}f}", *best_set_up, best.seed + order, f"`{best.record.workdir}`",
        ", ".join(chosen_set_up), median + f" ± {std}" * (len(point.scores) > 1),
        f"{low} to {high}", _counted(point.chosen),
    ]  # fmt: skip


def csv_text(sweeps: Sequence[RankSweep]) -> str:
    """One line per sweep, weights and rank; fields of the best set-up begin with `set_up_`."""
    return text_tables.csv_text([_csv_row(sweep, p) for sweep in sweeps for p in sweep.points])


def _csv_row(sweep: RankSweep, point: Point) -> dict[str, object]:
    best, record = point.best, point.runs[0].record
    over_seeds = spread(point.scores) if best else {}
    row: dict[str, object] = {
        "sweep": sweep.name, "model": record.model, "task": record.task,
        "metric": sweep.column.metric, "weights": point.weights, "rank": point.rank,
        "trained": record.trained, "runs": len(point.runs),
        "diverged": len(point.runs) - len(finite(point.runs)),
        "best": best and best.score, "seed": best and best.seed,
        "order_seed": best and best.order, "workdir": best and best.record.workdir,
    }  # fmt: skip
    none = (None,) * len(FIELDS)
    set_ups = (best.set_up, point.chosen[0].set_up) if best else (none, none)
    for prefix, set_up in zip(("", "set_up_"), set_ups, strict=True):
        row |= {prefix + field: value for field, value in zip(FIELDS, set_up, strict=True)}
    row |= {f"seeds_{name}": over_seeds.get(name) for name in ("median", "std", "min", "max")}
    seeds = len(point.chosen)
    return row | {"seeds": seeds, "seeds_diverged": seeds - len(point.scores)}
