"""What `experiments.pod_plan` prints: a config's step beside another, or a search."""

from __future__ import annotations

from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.pod_plan.figures import StepFigures
from experiments.pod_plan.planner import Planner
from experiments.pod_plan.tables import comparison, sweep_comparison, sweep_title, title
from lora_jax import methods
from lora_jax.checks import integer
from lora_jax.errors import InputError
from lora_jax.method import Method


def runs_of(config: ConfigDict) -> int:
    """Runs of the plan's program; 0 is 1.

    Raises:
      ValueError: no number of runs.
    """
    return max(integer("config.runs", config.runs, least=0), 1)


def search(planner: Planner, method: Method) -> list[StepFigures]:
    """Compiles every candidate for the config's method."""
    numbers = planner.config.search.runs or (runs_of(planner.config),)
    counts = [integer("config.search.runs", runs) for runs in numbers]
    todo = [
        (mesh, rows, runs) for runs in counts for mesh, rows in planner.candidates(method, runs)
    ]
    if not todo:
        raise InputError(
            "no mesh and batch size of config.search can fit: weights and optimizer state alone are "
            "more than a device has, or data x fsdp never divides the rows, or run the runs"
        )
    bar = tqdm(todo, desc="plans", unit="plan")
    return [planner.figures(method, mesh, rows, runs) for mesh, rows, runs in bar]


def report(planner: Planner, config: ConfigDict, head: str | None) -> str:
    """The config's step beside the step that it is compared with."""
    method = methods.create(head=head, **config.method.to_dict())
    mesh, runs = config.mesh.to_dict(), runs_of(config)
    if runs > 1:
        single = planner.single(method, mesh, config.rows)  # first: it may not fit the slice
        sweep = planner.figures(method, mesh, config.rows, runs)
        table = sweep_comparison(sweep, single, planner.chip)
        return f"{sweep_title(sweep, single, config)}\n{table}"
    step = planner.figures(method, mesh, config.rows)
    full = planner.figures(methods.full(head), mesh, config.rows)
    return f"{title(step, config)}\n{comparison(step, full, planner.chip)}"
