"""The training loop: epochs, evaluation, best and last, checkpoints, resume.

It knows no task and no method: it gets a train step, batches by (epoch, number), and a function
that evaluates the trainable parameters.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from tqdm import tqdm

from lora_jax.partition import Params
from lora_jax.sharding.hosts import is_main
from lora_jax.training.checkpoints import Checkpoints
from lora_jax.training.records import MetricsLog
from lora_jax.training.step import TrainStep


@runtime_checkable
class Batches(Protocol):
    """Batches of a run; batch `number` of an epoch is a function of the two numbers alone."""

    per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch from number `start` on."""
        ...


@dataclasses.dataclass
class Progress:
    """What a run has done so far; stored with every checkpoint.

    Attributes:
      step: micro-batches done.
      history: metrics of every finished epoch, in order.
      best: number of the best epoch (from 1), 0 before the first.
      seconds, compile_seconds, evaluation_seconds: time of training (waiting for data, compilation
        and checkpoints included), of the first step of every new shape, and of evaluation; summed
        over restarts.
      examples, tokens, slots: examples and real tokens trained on, and token slots computed.
      flops: of the steps, all devices together, see `costs.flops`.
      diverged: step at which the loss was not finite, 0 if never.
    """

    step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    slots: int = 0
    flops: int = 0
    diverged: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the loop.

    Attributes:
      epochs: passes over the data.
      headline: metric that chooses the best epoch.
      schedule: learning rate by update, for the log.
      accumulate: micro-batches per update.
      log_every, checkpoint_every: in steps; a checkpoint is also written after every epoch.
      label: shown at the progress bar.
      smaller_is_better: of the headline.
    """

    epochs: int
    headline: str
    schedule: optax.Schedule
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 500
    label: str = ""
    smaller_is_better: bool = False

    def note(self, progress: Progress, metrics: dict[str, float]) -> bool:
        """Adds a finished epoch to the history; whether it is the best so far."""
        progress.history.append(metrics)
        score = metrics[self.headline]
        best = progress.history[progress.best - 1][self.headline] if progress.best else score
        better = score < best if self.smaller_is_better else score > best
        if better or not progress.best:
            progress.best = len(progress.history)
            return True
        return False


def fit(
    plan: Plan,
    train_step: TrainStep,
    batches: Batches,
    evaluate: Callable[[Params], dict[str, float]],
    trainable: Params,
    state: Any,
    frozen: Params,
    key: jax.Array,
    folder: Path,
    on_best: Callable[[Params, Progress], None],
    place: Callable[[Any], Any] = lambda batch: batch,
    flops: Callable[[Any], int] = lambda batch: 0,
) -> tuple[Params, Progress]:
    """Trains to the end, from the newest checkpoint in `folder` if there is one.

    Args:
      plan: settings.
      train_step: from `make_train_step`; donates `trainable` and `state`.
      batches: the data.
      evaluate: metrics of the trainable parameters, called after each epoch.
      trainable, state, frozen: start of the run (unused but for their structure when resuming).
      key: dropout key of the run; each step gets its own.
      folder: of this run: checkpoints, metrics.jsonl, TensorBoard.
      on_best: called after each epoch that is the best so far, for example to save the adapter.
      place: puts a batch on the devices, see `Placement.batch`.
      flops: of a step with this batch; called once for every shape.

    Returns:
      The trainable parameters after the last step, and what was done.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    progress = Progress()
    if (found := checkpoints.restore({"trainable": trainable, "state": state})) is not None:
        trainable, state = found[0]["trainable"], found[0]["state"]
        progress = Progress(**found[1])
    log = MetricsLog(folder, progress.step)
    total = plan.epochs * batches.per_epoch
    bar = tqdm(
        total=total, initial=progress.step, desc=plan.label, unit="step", mininterval=1,
        disable=not is_main(),
    )  # fmt: skip
    clock = Clock(progress, flops)
    try:
        while progress.step < total and not progress.diverged:
            epoch, number = divmod(progress.step, batches.per_epoch)
            clock.start()
            for batch in batches.epoch(epoch, number):
                own_key = jax.random.fold_in(key, progress.step)
                trainable, state, metrics = train_step(
                    trainable, state, frozen, place(batch), own_key
                )
                clock.tick(batch, metrics["loss"])
                bar.update()
                if progress.step % plan.log_every == 0:
                    _log_step(plan, log, bar, progress, metrics)
                if progress.diverged:
                    break
                if progress.step % plan.checkpoint_every == 0 and progress.step % batches.per_epoch:
                    _save(checkpoints, trainable, state, progress)
            clock.stop()
            _finish_epoch(plan, log, bar, progress, evaluate, trainable, on_best)
            _save(checkpoints, trainable, state, progress)
    finally:
        bar.close()
        log.close()
        checkpoints.close()
    return trainable, progress


class Clock:
    """Counts steps, tokens and seconds; lets the device run one step behind the host, not more.

    Of batches with a first axis of runs it counts the examples and tokens of one run, on average.
    """

    def __init__(self, progress: Progress, flops: Callable[[Any], int]):
        self._progress = progress
        self._flops = flops
        self._shapes: dict[Any, int] = {}
        self._pending: jax.Array | None = None
        self._mark = 0.0

    def start(self) -> None:
        """Before the first batch of an epoch."""
        self._mark = time.perf_counter()

    def tick(self, batch: Any, loss: jax.Array) -> None:
        """After the step on a batch was sent to the device."""
        progress, segments = self._progress, batch.inputs.segments
        runs = segments.shape[0] if segments.ndim == 3 else 1
        progress.step += 1
        progress.examples += int(segments.max())
        progress.tokens += round(int(np.count_nonzero(segments)) / runs)
        progress.slots += batch.inputs.tokens.size // runs
        shape = (batch.inputs.tokens.shape, batch.weights.shape)
        new = shape not in self._shapes
        if new:
            self._shapes[shape] = self._flops(batch)
        progress.flops += self._shapes[shape]
        jax.block_until_ready(loss if new else self._pending)
        self._pending = loss
        spent = self._lap()
        progress.compile_seconds += spent if new else 0.0

    def stop(self) -> None:
        """After the last batch of an epoch."""
        jax.block_until_ready(self._pending)
        self._lap()

    def _lap(self) -> float:
        now = time.perf_counter()
        spent, self._mark = now - self._mark, now
        self._progress.seconds += spent
        return spent


def _log_step(
    plan: Plan, log: MetricsLog, bar: tqdm, progress: Progress, metrics: dict[str, jax.Array]
) -> None:
    values = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(values["loss"]):
        progress.diverged = progress.step
    updates = (progress.step - 1) // plan.accumulate
    log.write(progress.step, {**values, "learning_rate": float(plan.schedule(updates))})
    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


def _finish_epoch(
    plan: Plan, log: MetricsLog, bar: tqdm, progress: Progress,
    evaluate: Callable[[Params], dict[str, float]], trainable: Params,
    on_best: Callable[[Params, Progress], None],
) -> None:  # fmt: skip
    begin = time.perf_counter()
    metrics = evaluate(trainable)
    progress.evaluation_seconds += time.perf_counter() - begin
    log.write(progress.step, {f"validation/{name}": value for name, value in metrics.items()})
    if plan.note(progress, metrics):
        on_best(trainable, progress)
    if is_main():
        score = metrics[plan.headline]
        bar.write(f"{plan.label} epoch {len(progress.history)}: {plan.headline} {score:.4f}")


def _save(checkpoints: Checkpoints, trainable: Params, state: Any, progress: Progress) -> None:
    record = dataclasses.asdict(progress)
    checkpoints.save(progress.step, {"trainable": trainable, "state": state}, record)
