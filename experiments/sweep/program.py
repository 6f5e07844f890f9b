"""One program of a sweep: trains its points together, and writes what each would write alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs.folder import check_inputs, write_record
from experiments.runs.run import adapter_notes
from experiments.runs.task import Task, Trained
from experiments.sweep.points import Point
from experiments.sweep.programs import Program
from experiments.sweep.shared_base import SharedBase, Start
from experiments.sweep.steps import Steps
from lora_jax import adapters, files, inputs
from lora_jax.partition import Params
from lora_jax.run_folder import CHECKPOINTS
from lora_jax.sweeps import padding, runs, step
from lora_jax.sweeps.loop import Arrays, fit_runs
from lora_jax.sweeps.members import Member, Metrics, Watch
from lora_jax.training import Progress
from lora_jax.training.kept import check_best


def train_program(
    base: SharedBase,
    program: Program,
    workdir: Path,
    watch: Watch,
    aside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Trains the points of a program, or resumes it, and writes their run records.

    Args:
      base: data and base that the points share.
      program: which points.
      workdir: of the sweep.
      watch: called with the progress of the points, in the order of the program.
      aside: entered while decoding shows a bar of its own.
    """
    steps = base.steps(program.method)
    points = [base.points[name] for name in program.points]
    own = workdir / "programs" / program.name
    for folder in (own, *(folder_of(workdir, point) for point in points)):
        check_inputs(folder, base.task.inputs)
    for point in points:
        inputs.write(folder_of(workdir, point), base.task.inputs)
    starts = [base.start(point) for point in points]
    filled = [*range(len(points)), *[len(points) - 1] * (program.runs - len(points))]
    batches = base.batches([points[i] for i in filled])
    arrays = _arrays(base, steps, [points[i] for i in filled], [starts[i] for i in filled])

    def evaluate(trainable: Params) -> Sequence[Metrics]:
        predict = steps.predict(trainable, arrays.values)
        outputs = [predict(batch) for batch in base.task.evaluation_batches]
        return [base.task.metrics([output[i] for output in outputs]) for i in range(len(points))]

    checkpoints = own / CHECKPOINTS
    progress = fit_runs(
        [
            _member(base, point, start, workdir, checkpoints)
            for point, start in zip(points, starts, strict=True)
        ],
        steps.train_step(program.runs), batches, evaluate=evaluate, arrays=arrays,
        folder=own, place=steps.placement.batch,
        flops=partial(steps.flops, starts[0].trainable, starts[0].values), watch=watch,
        inputs=base.task.inputs,
    )  # fmt: skip
    for point, start, run in zip(points, starts, progress, strict=True):
        notes = {"program": program.name, "runs": program.runs, "points": len(points)}
        record = {**run.record(), "shapes": batches.menu.shapes, "sweep": notes}
        with aside():
            folder = folder_of(workdir, point)
            _finish(base, steps, point, start, record=record, folder=folder)


def folder_of(workdir: Path, point: Point) -> Path:
    """A point's run folder in that of the sweep."""
    return workdir / "points" / point.name


def _arrays(
    base: SharedBase, steps: Steps, points: Sequence[Point], starts: Sequence[Start]
) -> Arrays:
    placement = steps.placement
    padded = [padding.padded(start.trainable, steps.shapes) for start in starts]
    trainable = placement.of_runs().put(padding.stacked(padded))
    values = placement.per_run(runs.stack([start.values for start in starts]))
    keys = [jax.random.key(point.seed + 1, impl=base.settings.train.prng) for point in points]
    states = step.initial_states(steps.optimizer)
    state = placement.of_runs().initial_state(
        lambda params: states(params, values.learning_rate), trainable
    )
    return Arrays(trainable, state, values, steps.model.frozen, placement.per_run(jnp.stack(keys)))


def _member(
    base: SharedBase, point: Point, start: Start, workdir: Path, checkpoints: Path
) -> Member:
    """How the loop treats a point: its log, its schedule, and its adapter folder."""
    task, settings = base.task, point.settings
    folder = folder_of(workdir, point) / f"seed_{point.seed}"
    labels = {path: start.labels[path] for path in start.trainable}
    schedule, _ = settings.train.optimizer(labels, base.per_epoch)
    shapes = padding.shapes_of(start.trainable)

    def save(trainable: Mapping[str, np.ndarray], progress: Progress) -> None:
        with files.replaced_folder(folder / "adapter") as new:
            adapters.save_adapter(
                new, padding.cut(trainable, shapes), start.labels, point.method,
                base.widest.model.base, adapter_notes(task, settings, point.seed, progress),
                state={**base.widest.model.kept({}), **start.values.fixed},
            )  # fmt: skip

    loop = settings.train.loop(
        schedule, base.per_epoch, headline=task.headline, smaller_is_better=task.smaller_is_better,
        label=point.name,
    )  # fmt: skip
    return Member(loop, folder, save, lambda progress: check_best(folder, progress, checkpoints))


def _finish(
    base: SharedBase, steps: Steps, point: Point, start: Start, *, record: dict[str, Any],
    folder: Path,
) -> None:  # fmt: skip
    """Does what follows training, and writes a point's run record and adapter."""
    if (folder / "result.json").exists():
        return
    seed_folder = folder / f"seed_{point.seed}"
    if not record["diverged"]:
        record |= base.task.finish(partial(_best, base.task, steps, point, start, seed_folder))
    result = base.task.record(point.settings, {point.seed: record}, start.record)
    if result["adapter"] is not None:
        files.replace_folder(seed_folder / "adapter", folder / "adapter")
    write_record(folder, result)


def _best(task: Task, steps: Steps, point: Point, start: Start, folder: Path) -> Trained:
    """A point's run at its best epoch, as the model with the common method."""
    adapter, where = adapters.load_adapter(folder / "adapter"), str(folder / "adapter")
    known = adapter.base if adapter.base in steps.model.bases else steps.model.base
    best = adapters.apply_adapter(adapter, start.trainable, known, where)
    padded = padding.padded(best, steps.shapes)
    trainable = steps.placement.put(runs.of_run(padded, start.values))

    def outputs() -> list[np.ndarray]:
        predict = steps.model.predictor(task.function)(trainable)
        return [predict(batch) for batch in task.evaluation_batches]

    return Trained(
        model=steps.model.model(trainable),
        placement=steps.placement,
        fingerprints=steps.model.fingerprints(best),
        folder=folder,
        name=point.name,
        outputs=outputs,
    )
