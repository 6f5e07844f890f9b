"""The paper's Figure 2 with this project's runs: a plot, the orders of methods, and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.paper.counts import printed
from experiments.report import score_plot
from experiments.report.method_orders import (
    PAPER,
    Comparison,
    Order,
    counted,
    orders,
    paper_rows,
)
from experiments.report.panels import Panel, Point
from experiments.report.settings import setting
from experiments.runs import text_tables
from lora_jax.training.records import spread

_INTRODUCTION = """\
Runs of several methods with one model and as many examples, beside the paper's of another model: GPT-3 175B
(Table 15), on E2E GPT-2 medium (Table 3; the paper prints no losses of it, so losses are compared with its
order by BLEU). Every method stands at its best size and set-up, chosen by the score shown. "Paper" and "ours"
say by how much the first method is better than the second; ± is the 95% interval of the mean over the seeds
that both have (Student's t, paired), without it they have one or none in common. The paper's order is
*confirmed* or *refuted*, it is *open* (the interval contains 0, or there is none), or there is *no order in
the paper* (no further apart than its scores fluctuate: 0.5 on WikiSQL, 0.1 on MNLI, the largest printed
spread on E2E)."""


def figure(found: Sequence[Comparison]) -> Figure | None:
    """Our panels of every task, then the paper's; None without a comparison."""
    panels: dict[Panel, list[Point]] = {}
    for task, (table, model) in PAPER.items():
        of_task = [comparison for comparison in found if comparison.panel.task == task]
        panels |= {comparison.panel: _points(comparison) for comparison in of_task}
        if of_task:
            panels[Panel(task, model, None, table=table)] = [
                Point(
                    method=row.row.method.name, trained=int(printed(row.trained)[0]), score=score,
                    std=std, paper=True, setting="",
                )
                for row, score, std in paper_rows(task)
            ]  # fmt: skip
    return score_plot.draw(panels) if panels else None


def _points(comparison: Comparison) -> list[Point]:
    points = []
    for record in comparison.records:
        scores = list(comparison.scores(record).values())
        whole = all(map(math.isfinite, scores))
        over_seeds = spread(scores) if whole else {"mean": math.nan, "std": 0.0}
        points.append(
            Point(
                method=record.method, trained=record.trained, score=over_seeds["mean"],
                std=over_seeds["std"] if len(scores) > 1 else 0.0, paper=False,
                setting=setting(record, ("method", "learning_rate", "weight_decay")),
            )
        )  # fmt: skip
    return points


def markdown(found: Sequence[Comparison], image: str) -> str:
    """The section of the report.

    Args:
      found: at least one comparison.
      image: path of the figure; "" without one.
    """
    parts = ["## Figure 2: score against trained values", _INTRODUCTION]
    if image:
        parts.append(f"![Score against trained values of every method]({image})")
    for comparison in found:
        column, panel = comparison.column, comparison.panel
        name = (f"{panel.task} {column.metric}", panel.model, f"{panel.examples:,} examples")
        parts.append("### " + ", ".join(filter(None, (*name, panel.evaluated_on))))
        pairs = orders(comparison)
        if not pairs:
            parts.append("No two methods that the paper has, too.")
            continue
        lines = [
            (o.first, o.second, f"{o.paper:+.2f}", _ours(o, comparison), o.verdict) for o in pairs
        ]
        header = ("first", "second", "paper", "ours", "order")
        parts.append(text_tables.pipe_table(header, lines))
        numbers = ", ".join(f"{number} {name}" for name, number in counted(pairs).items() if number)
        parts.append(f"Of {len(pairs)} pairs: {numbers}.")
    return "\n\n".join(parts)


def _ours(order: Order, comparison: Comparison) -> str:
    digits = 2 if comparison.column.percent else 4
    half = "" if math.isnan(order.ours.half) else f" ± {order.ours.half:.{digits}f}"
    return f"{order.ours.value:+.{digits}f}{half}"


def csv_text(found: Sequence[Comparison]) -> str:
    """One line for every two methods."""
    rows = []
    for comparison in found:
        panel = comparison.panel
        for order in orders(comparison):
            rows.append({
                "task": panel.task, "metric": panel.metric, "model": panel.model,
                "examples": panel.examples, "evaluated_on": panel.evaluated_on,
                "first": order.first, "second": order.second, "paper": round(order.paper, 2),
                "ours": order.ours.value,
                "half": None if math.isnan(order.ours.half) else order.ours.half,
                "order": order.verdict,
            })  # fmt: skip
    return text_tables.csv_text(rows)
