"""The finished runs of a comparison, as its statistics need them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.compare.contenders import Contender, rate_of
from experiments.runs.record import MADE_ANEW
from experiments.sweep.points import Point
from lora_jax.reading import Record, read_object
from lora_jax.run_folder import RESULT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
      rate: its learning rate.
      seed: its seed.
      score: the headline at the best epoch; None if the run diverged or the score is no number.
      diverged: whether it diverged, in whatever epoch.
      step_seconds: of one step, the run's share of its program, without compilation.
      trained: number of trained values without the task's head.
      folder: of the run.
      examples: of an epoch, as far as the run came.
    """

    rate: float
    seed: int
    score: float | None
    diverged: bool
    step_seconds: float
    trained: int
    folder: Path
    examples: int = 0


def unfinished(contenders: Sequence[Contender], workdir: Path) -> list[str]:
    """Names of the runs that have no result yet."""
    return [
        point.name
        for contender in contenders
        for point in contender.points
        if not result_of(workdir, point.name).exists()
    ]


def result_of(workdir: Path, name: str) -> Path:
    """The path of a run's record.

    Args:
      workdir: of the comparison.
      name: of the run.
    """
    return workdir / "points" / name / RESULT


def read(contender: Contender, workdir: Path, headline: str) -> list[Run]:
    """All runs of a method.

    Args:
      contender: the method.
      workdir: of the comparison.
      headline: the metric that is compared.

    Raises:
      FileError: a run record lacks something, or is damaged.
    """
    return [_run(point, workdir, headline) for point in contender.points]


def _run(point: Point, workdir: Path, headline: str) -> Run:
    path = result_of(workdir, point.name)
    record = read_object(path, MADE_ANEW)
    run, parameters = record.record("seeds").record(str(point.seed)), record.record("parameters")
    diverged = run.get("diverged", int) > 0
    head = parameters.get("head", int) if "head" in parameters.values else 0
    return Run(
        rate=rate_of(point),
        seed=point.seed,
        score=None if diverged else _best(run, headline),
        diverged=diverged,
        step_seconds=_step_seconds(run),
        trained=parameters.get("trainable", int) - head,
        folder=path.parent,
        examples=_examples(record, run),
    )


def _examples(record: Record, run: Record) -> int:
    """Examples of an epoch; of a run that diverged in its first epoch those before."""
    epochs = record.record("config").integer("epochs", 1)
    return round(run.get("examples", int) / epochs)


def _best(run: Record, headline: str) -> float | None:
    """The headline at the best epoch; NaN and infinity are null in files."""
    if run.values.get("best", 0) is None:
        return None
    best = run.record("best")
    return None if best.values.get(headline, 0) is None else best.get(headline, float)


def _step_seconds(run: Record) -> float:
    """Seconds of a step; with nothing but first steps of their shape, theirs. NaN without any step."""
    steps = run.get("step", int)
    later = steps - len(run.values.get("shapes", ()))
    if later > 0:
        return (run.get("seconds", float) - run.get("compile_seconds", float)) / later
    return run.get("seconds", float) / steps if steps else math.nan
