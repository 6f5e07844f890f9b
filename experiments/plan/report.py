"""What `experiments.plan` prints: a config's step beside another, or a search."""

from __future__ import annotations

from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.plan.figures import StepFigures
from experiments.plan.planner import Planner
from experiments.plan.tables import comparison, sweep_comparison, sweep_title, title
from experiments.plan.variants import Variant, compared, configured
from lora_jax.checks import integer
from lora_jax.errors import InputError


def runs_of(config: ConfigDict) -> int:
    """Runs of the plan's program; 0 is 1.

    Raises:
      ValueError: no number of runs.
    """
    return max(integer("config.runs", config.runs, least=0), 1)


def search(planner: Planner, variant: Variant) -> list[StepFigures]:
    """Compiles every candidate for a variant, the config's own."""
    numbers = planner.config.search.runs or (runs_of(planner.config),)
    counts = [integer("config.search.runs", runs) for runs in numbers]
    todo = [
        (mesh, rows, runs) for runs in counts for mesh, rows in planner.candidates(variant, runs)
    ]
    if not todo:
        raise InputError(
            "no mesh and batch size of config.search can fit: weights and optimizer state alone are "
            "more than a device has, or data x fsdp never divides the rows, or run the runs"
        )
    bar = tqdm(todo, desc="plans", unit="plan")
    return [planner.figures(variant, mesh, rows, runs) for mesh, rows, runs in bar]


def report(planner: Planner, config: ConfigDict, head: str | None) -> str:
    """The config's step beside the steps that it is compared with."""
    mesh, runs = config.mesh.to_dict(), runs_of(config)
    if runs > 1:
        own = configured(config, head)
        single = planner.single(own, mesh, config.rows)  # first: it may not fit the slice
        sweep = planner.figures(own, mesh, config.rows, runs)
        table = sweep_comparison(sweep, single, planner.chip)
        return f"{sweep_title(sweep, single, config)}\n{table}"
    variants = compared(config, head)
    steps = {v.name: planner.figures(v, mesh, config.rows) for v in variants}
    first = steps[variants[0].name]
    return f"{title(first, config)}\n{comparison(steps, planner.chip)}"
