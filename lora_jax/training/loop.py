"""The training loop: epochs, evaluation, best and last, checkpoints, resume.

It knows no task and no method: it gets a train step, batches by (epoch, number), and a function
that evaluates the trainable parameters.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.typing import ArrayLike
from tqdm import tqdm

from lora_jax.data.ahead import ahead
from lora_jax.data.counts import Counts
from lora_jax.errors import InputError
from lora_jax.inputs import Inputs
from lora_jax.partition import Params
from lora_jax.sharding.hosts import is_main
from lora_jax.state import with_types, without_types
from lora_jax.training.checkpoints import Checkpoints
from lora_jax.training.clock import Clock
from lora_jax.training.newest import Newest
from lora_jax.training.progress import LoopSettings, Progress
from lora_jax.training.records import MetricsLog
from lora_jax.training.step import FINITE, TrainStep

_LOG = logging.getLogger(__name__)
_NO_GRADIENT = (
    "%s: all gradients of the first step are 0. Does the loss depend on what the method trains, through the "
    "outputs of the model that it is given?"
)
_MOVED = "moved"  # of the model's own state, in checkpoints


@runtime_checkable
class Batches(Protocol):
    """Batches of a run; batch `number` of an epoch is a function of the two numbers alone.

    A thread draws them from the iterator of an epoch, a few before their steps.

    If they have a `digest`, a text that tells their data from others', `Trainer.fit` resumes a run, or reads
    it back, only with the same.

    Attributes:
      per_epoch: batches of an epoch.
    """

    per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch from number `start` on."""
        ...

    def count(self, batch: Any) -> Counts:
        """What a batch adds to the progress of a run."""
        ...


def whole_epoch(batches: Batches, epoch: int, start: int = 0) -> Iterator[Any]:
    """The batches of an epoch; raises InputError, at the end, if they are not as many as `per_epoch` says."""
    number = start
    for batch in batches.epoch(epoch, start):
        if number == batches.per_epoch:
            break
        number += 1
        yield batch
    else:
        if number == batches.per_epoch:
            return
    found = "more" if number == batches.per_epoch else f"{number - start}"
    raise InputError(
        f"batches.epoch({epoch}, {start}) gives {found} batches, but per_epoch is {batches.per_epoch}: the "
        "batches of an epoch are those from number `start` to per_epoch - 1"
    )


def made_ahead(
    batches: Batches, epoch: int, start: int, place: Callable[[Any], Any]
) -> AbstractContextManager[Iterator[tuple[Any, Any]]]:
    """The batches of `whole_epoch`, each with what `place` makes of it; made in a thread, see `ahead`."""
    return ahead((batch, place(batch)) for batch in whole_epoch(batches, epoch, start))


def fit(
    settings: LoopSettings,
    train_step: TrainStep,
    batches: Batches,
    *,
    evaluate: Callable[[Params], dict[str, float]],
    trainable: Params,
    state: optax.OptState,
    frozen: Params,
    key: jax.Array,
    folder: Path,
    on_best: Callable[[Params, Progress], None],
    place: Callable[[Any], Any] = lambda batch: batch,
    flops: Callable[[Any], int] = lambda batch: 0,
    on_resume: Callable[[Progress], None] = lambda progress: None,
    inputs: Inputs | None = None,
) -> tuple[Params, Progress]:
    """Trains to the end, from the newest checkpoint in `folder` if there is one.

    Args:
      settings: of the loop.
      train_step: from `make_train_step`; donates `trainable` and `state`.
      batches: the data.
      evaluate: metrics of the trainable parameters, called after each epoch. With them goes what the
        model has written of its state, here and in `on_best` and the result: `{**trainable, **moved}`.
      trainable, state, frozen: start of the run (unused but for their structure when resuming).
      key: dropout key of the run; each step gets a key of its own.
      folder: of this run: checkpoints, metrics.jsonl, TensorBoard.
      on_best: called after each epoch that is the best so far, for example to save the adapter.
      place: puts a batch on the devices, see `Placement.batch`; called in a thread.
      flops: of a step with this batch; called once for every shape.
      on_resume: called with the progress of the checkpoint that the run goes on from.
      inputs: what the run is made from, for the records of checkpoints.

    Returns:
      The trainable parameters (and what moved) after the last step, and what was done. A run that
      diverges ends with the step that shows it: what comes of that step is neither evaluated nor saved,
      and the newest checkpoint and the best epoch stay as they are.
    """
    checkpoints = Checkpoints(folder / "checkpoints", inputs)
    progress = Progress()
    moved: Params = {}
    if (record := checkpoints.record()) is not None:
        trainable, state, moved = _restored(checkpoints, record, trainable, state, frozen)
        progress = Progress(**record)
        on_resume(progress)
    log = MetricsLog(folder, progress.step, settings.lines(progress))
    total = settings.epochs * batches.per_epoch
    bar = tqdm(
        total=total, initial=progress.step, desc=settings.label, unit="step", mininterval=1,
        disable=not is_main(),
    )  # fmt: skip
    clock, newest = Clock(progress, batches.count, flops), Newest()
    try:
        while progress.step < total:
            epoch, number = divmod(progress.step, batches.per_epoch)
            clock.start()
            bad = None
            with made_ahead(batches, epoch, number, place) as stream:
                for batch, placed in clock.waiting(stream):
                    step_key = jax.random.fold_in(key, progress.step)
                    trainable, state, written, metrics = train_step(
                        trainable, state, {**frozen, **moved}, placed, step_key
                    )
                    moved = {**moved, **written}
                    clock.tick(batch, metrics["loss"])
                    bar.update()
                    if progress.step == 1 and float(np.asarray(metrics.get("grad_norm", 1))) == 0:
                        _LOG.warning(_NO_GRADIENT, settings.label)
                    done = progress.step % batches.per_epoch == 0
                    saves = done or progress.step % settings.checkpoint_every == 0
                    bad = newest.not_finite(progress, metrics, now=saves)
                    if progress.step % settings.log_every == 0 and (
                        bad is None or bad.number == progress.step
                    ):
                        _log_step(settings, log, bar, progress.step, metrics)
                    if bad is not None:
                        break
                    if saves and not done:
                        _save(checkpoints, trainable, state, moved, progress)
            clock.stop()
            if bad is not None:
                if bad.number % settings.log_every:
                    _log_step(settings, log, bar, bad.number, bad.metrics)
                progress = dataclasses.replace(
                    bad.progress, diverged=bad.number, seconds=progress.seconds
                )
                break
            if _finish_epoch(settings, log, evaluate, {**trainable, **moved}, progress):
                on_best({**trainable, **moved}, progress)
            if is_main():
                bar.write(settings.epoch_text(progress))
            _save(checkpoints, trainable, state, moved, progress)
    finally:
        bar.close()
        log.close()
        checkpoints.close()
    return {**trainable, **moved}, progress


def _log_step(
    settings: LoopSettings,
    log: MetricsLog,
    bar: tqdm,
    step: int,
    metrics: Mapping[str, ArrayLike],
) -> None:
    values = {name: float(np.asarray(value)) for name, value in metrics.items() if name != FINITE}
    log.write(step, {**values, "learning_rate": settings.learning_rate(step)})
    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


def _finish_epoch(
    settings: LoopSettings,
    log: MetricsLog,
    evaluate: Callable[[Params], dict[str, float]],
    trainable: Params,
    progress: Progress,
) -> bool:
    """Evaluates the epoch and notes its metrics; whether it is the best so far."""
    begin = time.perf_counter()
    metrics = evaluate(trainable)
    progress.evaluation_seconds += time.perf_counter() - begin
    log.write(progress.step, {f"validation/{name}": value for name, value in metrics.items()})
    return settings.note(progress, metrics)


def _save(
    checkpoints: Checkpoints,
    trainable: Params,
    state: optax.OptState,
    moved: Params,
    progress: Progress,
) -> None:
    """Saves a checkpoint; of the model's own state what moved, if anything did."""
    tree, record = {"trainable": trainable, "state": state}, dataclasses.asdict(progress)
    if moved:
        numbers = without_types(moved)
        tree[_MOVED] = numbers
        record[_MOVED] = {path: (v.shape, str(v.dtype)) for path, v in numbers.items()}
    checkpoints.save(progress.step, tree, record)


def _restored(
    checkpoints: Checkpoints,
    record: dict[str, Any],
    trainable: Params,
    state: optax.OptState,
    frozen: Params,
) -> tuple[Params, optax.OptState, Params]:
    """What `_save` saved; takes what it added to the record out of it.

    Raises:
      ValueError: state that the model does not have.
    """
    shapes = record.pop(_MOVED, {})
    if missing := sorted(shapes.keys() - frozen.keys()):
        raise InputError(
            f"the newest checkpoint has state that the model lacks: {missing[:5]}; resume with the "
            "model of that run, or train in another folder"
        )
    before = {path: frozen[path] for path in shapes}
    like = {
        path: jax.ShapeDtypeStruct(*shapes[path], sharding=getattr(value, "sharding", None))
        for path, value in without_types(before).items()
    }
    tree = {"trainable": trainable, "state": state} | ({_MOVED: like} if like else {})
    found = checkpoints.restore(tree)
    assert found is not None  # it has a record
    restored = found[0]
    moved = with_types(restored.get(_MOVED, {}), before)
    return restored["trainable"], restored["state"], moved
