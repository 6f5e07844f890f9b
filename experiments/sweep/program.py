"""One program of a sweep: trains its points together, and writes what each would write alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs import data_to_text
from experiments.runs.adaptation import adapter_notes, optimizer_for, plan_of
from experiments.runs.record import seed_record
from experiments.sweep.group import Group, Start
from experiments.sweep.points import Point, Program
from lora_jax import adapters, files, partition
from lora_jax.files import write_json
from lora_jax.partition import Params
from lora_jax.sweeps import padding, runs, step
from lora_jax.sweeps.loop import Arrays, Member, Metrics, Watch, fit_runs
from lora_jax.training import loop


def train_program(
    group: Group, program: Program, workdir: Path, watch: Watch,
    aside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:  # fmt: skip
    """Trains the points of a program, or resumes it, and writes their run records.

    Args:
      group: that the points belong to.
      program: which points.
      workdir: of the sweep.
      watch: told how the points get on, in the order of the program.
      aside: entered while decoding shows a bar of its own.
    """
    points = [group.points[name] for name in program.points]
    starts = [group.start(point) for point in points]
    filled = [*range(len(points)), *[len(points) - 1] * (program.runs - len(points))]
    data = group.batches([points[i] for i in filled])
    arrays = _arrays(group, [points[i] for i in filled], [starts[i] for i in filled])

    def evaluate(trainable: Params) -> Sequence[Metrics]:
        predict = group.predict(trainable, arrays.values.scales)
        return group.preparation.metrics(lambda batch: predict(batch)[: len(points)])

    progress = fit_runs(
        [_member(group, point, start, workdir) for point, start in zip(points, starts, strict=True)],
        group.train_step(program.runs), data, evaluate, arrays,
        workdir / "programs" / program.name, group.placement.batch,
        lambda batch: group.flops(starts[0], batch), watch,
    )  # fmt: skip
    for point, start, own in zip(points, starts, progress, strict=True):
        notes = {"program": program.name, "runs": program.runs, "points": len(points)}
        record = {**seed_record(own, data), "sweep": notes}
        with aside():
            _finish(group, point, start, record, folder_of(workdir, point))


def folder_of(workdir: Path, point: Point) -> Path:
    """A point's run folder in that of the sweep."""
    return workdir / "points" / point.name


def _arrays(group: Group, points: Sequence[Point], starts: Sequence[Start]) -> Arrays:
    placement = group.placement
    padded = [padding.padded(start.trainable, group.shapes) for start in starts]
    trainable = placement.of_runs().put(padding.stacked(padded))
    values = placement.per_run(runs.stack([start.values for start in starts]))
    keys = [jax.random.key(point.seed + 1, impl=group.config.prng) for point in points]
    states = step.initial_states(group.optimizer)
    state = placement.of_runs().initial_state(
        lambda params: states(params, values.learning_rate), trainable
    )
    return Arrays(
        trainable, state, values, group.adaptation.frozen, placement.per_run(jnp.stack(keys))
    )


def _member(group: Group, point: Point, start: Start, workdir: Path) -> Member:
    own, folder = group.preparation, folder_of(workdir, point) / f"seed_{point.seed}"
    labels = {path: start.labels[path] for path in start.trainable}
    schedule, _ = optimizer_for(point.config, labels, group.updates)
    shapes = padding.shapes_of(start.trainable)

    def save(trainable: Mapping[str, np.ndarray], progress: loop.Progress) -> None:
        notes = adapter_notes(point.config, own.task, point.seed, progress)
        cut = padding.cut(trainable, shapes)
        adapters.save_adapter(
            folder / "adapter", cut, start.labels, start.method, group.adaptation.base, notes
        )

    plan = plan_of(point.config, schedule, own.headline, point.name, own.smaller_is_better)
    return Member(plan, folder, save)


def _finish(group: Group, point: Point, start: Start, record: dict[str, Any], folder: Path) -> None:
    """Decodes where the experiment does, and writes a point's run record and adapter."""
    if (folder / "result.json").exists():
        return
    own, seed_folder = group.preparation, folder / f"seed_{point.seed}"
    if isinstance(own, data_to_text.Preparation):
        adapter = adapters.load_adapter(seed_folder / "adapter")
        best = adapters.apply_adapter(
            adapter, start.trainable, group.adaptation.base, str(seed_folder / "adapter")
        )
        padded = padding.padded(best, group.shapes)
        trainable = group.placement.put(runs.scaled(padded, start.values.scales))
        model = partition.join(group.adaptation.structure, trainable, group.adaptation.frozen)
        weights = {
            "base": group.adaptation.base, "weights": adapters.fingerprint(best, jnp.float32)
        }  # fmt: skip
        record |= own.finish(model, group.placement, weights, seed_folder, point.name)
    result = own.record(point.config, {point.seed: record}, start.counts)
    files.replace_folder(seed_folder / "adapter", folder / "adapter")
    write_json(folder / "result.json", result)
