"""The training loop of several runs in one program: each with its own best epoch, log and end.

What `training.loop` does for one run, for all at once. A run whose numbers are not finite ends as it
would alone; the others go on. The whole program resumes from its newest
checkpoint, to the same next batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.inputs import Inputs
from lora_jax.partition import Params
from lora_jax.sweeps.members import Member, Metrics, RunningMembers, Watch
from lora_jax.sweeps.runs import RunValues
from lora_jax.training.clock import Clock
from lora_jax.training.loop import Batches, made_ahead
from lora_jax.training.newest import Newest
from lora_jax.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class Arrays:
    """What a program computes with; all but the frozen part has a first axis of runs.

    Members beyond those that the loop is given fill the program up; they are trained for nothing.
    """

    trainable: Params
    state: Any
    values: RunValues
    frozen: Params
    keys: jax.Array


def fit_runs(
    members: Sequence[Member],
    train_step: Callable[..., Any],
    batches: Batches,
    *,
    evaluate: Callable[[Params], Sequence[Metrics]],
    arrays: Arrays,
    folder: Path,
    place: Callable[[Any], Any],
    flops: Callable[[Any], int] = lambda batch: 0,
    watch: Watch = lambda runs, losses: None,
    inputs: Inputs | None = None,
) -> list[Progress]:
    """Trains all members to the end, from the newest checkpoint in `folder` if there is one.

    Args:
      members: the runs, in the order of the arrays' first axis.
      train_step: from `make_runs_train_step`; donates the trainable part and the state.
      batches: of all runs, each with a first axis of runs; or the same ones for all.
      evaluate: metrics of every run, of the stacked trainable parameters.
      arrays: start of the runs (unused but for their structure when resuming).
      folder: of the program: checkpoints.
      place: puts a batch on the devices, see `Placement.batch`; called in a thread.
      flops: of one run's step with this batch; called once for every shape.
      watch: called with the progress of all members.
      inputs: what the runs are made from, for the records of checkpoints.

    Returns:
      What every member did. Seconds are its share: those of the program by the number of members.
    """
    program = RunningMembers(members, folder, watch, inputs)
    trainable, state = program.restore(arrays.trainable, arrays.state)
    clock, newest = Clock(program.shared, batches.count, flops), Newest()
    settings, shared = members[0].settings, program.shared
    total = settings.epochs * batches.per_epoch
    if shared.step < total and program.live:
        program.open_logs()
    try:
        program.tell()
        while shared.step < total and program.live:
            epoch, number = divmod(shared.step, batches.per_epoch)
            clock.start()
            with made_ahead(batches, epoch, number, place) as stream:
                for batch, placed in clock.waiting(stream):
                    trainable, state, metrics = train_step(
                        trainable, state, arrays.values, arrays.frozen, placed, arrays.keys,
                        np.uint32(shared.step),
                    )  # fmt: skip
                    clock.tick(batch, metrics["loss"])
                    done = shared.step % batches.per_epoch == 0
                    saves = done or shared.step % settings.checkpoint_every == 0
                    for step in newest.known(shared, metrics, now=saves):
                        program.end_diverged(step)
                    if shared.step % settings.log_every == 0:
                        program.log(metrics)
                    if not program.live:
                        break
                    if saves and not done:
                        program.save(trainable, state)
            clock.stop()
            program.finish_epoch(evaluate, trainable)
            program.save(trainable, state)
    finally:
        program.close()
    return program.runs
