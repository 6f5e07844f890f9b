"""The largest batch that fits a topology, for each variant of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tqdm import tqdm

from experiments.plan.figures import StepFigures
from experiments.plan.planner import Planner
from experiments.plan.tables import size_text
from experiments.plan.variants import Variant
from experiments.runs import text_tables
from lora_jax.sharding.mesh import make_mesh, shares

MOST_ROWS = 4096


def largest(
    planner: Planner, variant: Variant, mesh: Mapping[str, int]
) -> tuple[StepFigures, StepFigures | None]:
    """Compiles batches until one fits and the next larger one does not.

    Memory grows nearly evenly with the rows, so the next batch to try lies on the line through two that
    were compiled.

    Args:
      planner: of a config and a topology.
      variant: what is trained, over what base.
      mesh: size of each axis.

    Returns:
      The step with the most rows that fits, and the next larger one, which does not; it is None if
      `MOST_ROWS` fit. If even the smallest batch does not fit, that one is the first of the two.

    Raises:
      ValueError: see `Planner.figures`.
    """
    unit = shares(make_mesh(dict(mesh), planner.devices))
    steps = {1: planner.figures(variant, dict(mesh), unit)}
    if not steps[1].fits:
        return steps[1], None
    while True:
        low = max(count for count, step in steps.items() if step.fits)
        high = min((count for count, step in steps.items() if not step.fits), default=None)
        end = MOST_ROWS // unit if high is None else high - 1
        if low >= end:
            return steps[low], None if high is None else steps[high]
        if high is not None and len(steps) % 2 == 0:  # bisection bounds what uneven memory costs
            count = low + (high - low) // 2
        else:
            count = _next(planner.chip.memory_bytes - steps[low].peak, steps, low, end)
        steps[count] = planner.figures(variant, dict(mesh), count * unit)


def _next(room: int, steps: Mapping[int, StepFigures], low: int, end: int) -> int:
    """The batch to compile next: above `low`, which fits, and at most `end`.

    Args:
      room: bytes of memory that are left beside the batch `low`.
      steps: compiled ones, by batch.
      low: largest batch that fits.
      end: largest batch that may still fit.
    """
    if len(steps) == 1:
        return low + 1
    other = min((count for count in steps if count != low), key=lambda count: abs(count - low))
    slope = (steps[other].peak - steps[low].peak) / (other - low)
    more = int(room / slope) if slope > 0 else end
    return min(max(low + more, low + 1), end)


def report_largest(planner: Planner, variants: Sequence[Variant], mesh: Mapping[str, int]) -> str:
    """A table of the largest batches of some variants."""
    rows = []
    for variant in tqdm(variants, desc="largest batches", unit="variant"):
        step, beyond = largest(planner, variant, mesh)
        length = planner.config.length
        if not step.fits:
            cells = ("none", "-", "-", f"{step.rows} x {length}: {size_text(step.peak)}")
        else:
            more = "-" if beyond is None else f"{beyond.rows} x {length}: {size_text(beyond.peak)}"
            cells = (f"{step.rows} x {length}", size_text(step.peak), f"{step.bound:,.0f}", more)
        rows.append((variant.name, size_text(step.arguments), *cells))
    head = (
        "", "weights, optimizer state, batch", f"largest batch on {planner.topology}", "peak",
        "tokens/s at most", f"does not fit {size_text(planner.chip.memory_bytes)}",
    )  # fmt: skip
    return text_tables.pipe_table(head, rows)
