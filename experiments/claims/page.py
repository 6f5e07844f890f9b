"""The page about the claims: a table with the verdicts, how to read it, and the files written with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import figure
from experiments.claims.claims import STATEMENTS, Comparisons, LeftOut
from experiments.claims.regret import ALIKE
from experiments.claims.rules import MARGIN, Claim
from experiments.compare.page import Unit
from experiments.compare.record import Comparison, budget_text
from experiments.compare.statistics import Row
from experiments.report.record import model_label
from experiments.runs.text_tables import pipe_table
from lora_jax import files
from lora_jax.analysis.plots import save

PAGE, RECORD, PLOT = "claims.md", "claims.json", "claims.png"
FILES = (PAGE, RECORD, PLOT)
SOURCE = "10.64434/tml.20250929"  # the DOI
_HEADER = ("claim", "measured here", "interval", "rule", "verdict")


def write(output: Path, found: Comparisons, judged: Sequence[Claim | LeftOut]) -> None:
    """Writes claims.md, claims.json and claims.png into a folder."""
    save(figure.drawn(found.main), output / PLOT)
    files.write_json(output / RECORD, as_json(found, judged))
    files.write_text(output / PAGE, markdown(found, judged))


def as_json(found: Comparisons, judged: Sequence[Claim | LeftOut]) -> dict[str, Any]:
    """What claims.json holds; intervals are those of the page before they are rounded."""
    named = [(name, own) for name, own in found._asdict().items() if own is not None]
    return {
        "doi": SOURCE,
        "margin": MARGIN,
        "comparisons": {
            name: {"task": own.task, "model": own.model, "budget": dict(own.budget)}
            for name, own in named
        },
        "headline": found.main.headline,
        "claims": [_claim_to_json(own) for own in judged if isinstance(own, Claim)],
        "left_out": [
            {"claim": own.number, "statement": STATEMENTS[own.number], "why": own.why}
            for own in judged
            if isinstance(own, LeftOut)
        ],
    }


def _claim_to_json(claim: Claim) -> dict[str, Any]:
    interval = claim.measured.interval
    return {
        "claim": claim.number,
        "statement": STATEMENTS[claim.number],
        "quantity": claim.quantity,
        "unit": "log10 of a ratio" if claim.ratio else "difference of scores",
        "by_seed": {str(seed): value for seed, value in claim.measured.by_seed.items()},
        "mean": None if interval is None else interval.value,
        "half": None if interval is None else interval.half,
        "rule": claim.rule.text,
        "verdict": claim.verdict,
        "why_open": claim.why_open or None,
    }


def markdown(found: Comparisons, judged: Sequence[Claim | LeftOut]) -> str:
    """The page."""
    main = found.main
    unit = Unit(main.headline, main.smaller_is_better)
    of = f" on {main.task} with {model_label(main.model)}" if main.task else ""
    left_out = [own for own in judged if isinstance(own, LeftOut)]
    parts = [
        f'# The claims of "LoRA Without Regret"{of}',
        f"[Thinking Machines Lab 2025](https://doi.org/{SOURCE}). Differences are of {unit.label}; "
        "a positive one is a loss.",
        pipe_table(_HEADER, [_cells(own, unit) for own in judged if isinstance(own, Claim)]),
    ]
    if left_out:
        lines = [f"- {own.number}. {STATEMENTS[own.number]}: {own.why}." for own in left_out]
        parts.append("\n".join(["Left out:", "", *lines]))
    parts += [
        f"![Best learning rates and best scores against full fine-tuning]({PLOT})",
        _reading(found),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(claim: Claim, unit: Unit) -> list[str]:
    interval, why = claim.measured.interval, claim.why_open

    def text(value: float) -> str:
        if claim.ratio:
            digits = np.format_float_positional(10**value, 2, fractional=False, trim="-")
            return f"{digits}x"
        return f"{unit.factor * value:+.{unit.digits}f}"

    mean = "-" if interval is None else text(interval.value)
    ends = "-"
    if interval is not None and not math.isnan(interval.half):
        low, high = interval.value - interval.half, interval.value + interval.half
        ends = f"{text(low)} to {text(high)}"
    return [
        f"{claim.number}. {STATEMENTS[claim.number]}",
        f"{claim.quantity}: {mean}",
        ends,
        claim.rule.text,
        f"{claim.verdict}: {why}" if why else claim.verdict,
    ]


def _reading(found: Comparisons) -> str:
    """How the numbers were made, and what they mean."""
    main = found.main
    budgets = {"--main": main, "--large_batch": found.large_batch, "--short": found.short}
    lines = [f"{flag}: {_budget(own)}." for flag, own in budgets.items() if own is not None]
    seeds = sorted({seed for row in main.rows for seed in _seeds(row)})
    model = f" ({model_label(main.model)})" if main.model else ""
    lines += [
        f"Interval: 95% by Student's t over the differences of {len(seeds)} "
        f"seed{'s' * (len(seeds) != 1)}, paired by seed (same order of the examples, same head). With so few "
        "it is wide, and it says how much seeds differ, not what other data or another model would give. "
        "About one of twenty intervals misses the truth by chance.",
        "Best rate: the top of the parabola through a seed's best rate and its neighbours, over the "
        "logarithm of the rate. Where it is at an end of the grid for some seed there is none, and the "
        "claim is open: add rates to that method (--config.grids.METHOD.learning_rate) and compare again.",
        "Best score: at the rate with the best mean over the seeds, on the evaluation data, by which the "
        "rate and the epoch were chosen too. Where that rate is at an end of the grid the method may be "
        "better than shown, and the claim is open.",
        f"The margin of {Unit(main.headline, main.smaller_is_better).factor * MARGIN:g} is the loss "
        "that is taken to matter: 0.01 of a loss in nats, one point of an accuracy. It was set by us. "
        "Confirmed says nothing of the size of what was found: read the interval.",
        f"As many trained values: within {ALIKE:.0%}, the head apart.",
        f"A small model{model}, one task and short runs: a verdict is about these runs. The claims were made "
        "of language models with billions of parameters, and a claim that is refuted here may hold there.",
        "Figure: on the left LoRA's best rate over that of full fine-tuning, with the line of ten times and "
        "the range that counts as about ten times; on the right by how much the best score is worse "
        "than that of full fine-tuning, with the margin. Hollow: at an end of the grid. No value: a seed's "
        "best rate is at an end of the grid, or a run that is needed has no score.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _budget(comparison: Comparison) -> str:
    if not comparison.budget:
        return "its comparison.json does not say the budget; the same command of experiments.compare adds it"
    return budget_text(comparison.budget)


def _seeds(row: Row) -> set[int]:
    return {seed for at in row.rates for seed in at.scores}
