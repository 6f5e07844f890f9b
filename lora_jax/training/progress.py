"""What a run has done so far, and the settings of the loop that does it."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import optax

from lora_jax.errors import InputError

_LOG = logging.getLogger(__name__)
TIMES = ("seconds", "compile_seconds", "evaluation_seconds", "waiting_seconds")  # of a `Progress`


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What a run has done so far; stored with every checkpoint.

    Attributes:
      step: micro-batches done.
      history: metrics of every finished epoch, in order.
      best: number of the best epoch (from 1), 0 before the first.
      seconds, compile_seconds, evaluation_seconds: time of training (waiting for data, compilation
        and checkpoints included), of the first step of every new shape, and of evaluation; summed
        over restarts.
      waiting_seconds: those of `seconds` in which the loop waited for its next batch to be made.
      examples, tokens, slots: examples and real tokens trained on, and token slots computed.
      flops: of the steps, all devices together, see `costs.flops`.
      diverged: step whose loss, gradient or new parameters were not finite, which ended the run; 0 if
        there was none.
    """

    step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    waiting_seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    slots: int = 0
    flops: int = 0
    diverged: int = 0

    def record(self) -> dict[str, Any]:
        """What a run record says of it: all counters, and the metrics of the best and last epoch.

        A run that diverged has no last epoch, and no best one if it finished none before.
        """
        return {
            **dataclasses.asdict(self),
            "best": self.history[self.best - 1] if self.best else None,
            "best_epoch": self.best,
            "last": None if self.diverged else self.history[-1],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Progress:
        """The inverse of `record`."""
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in record.items() if name in names}
        return cls(**{**values, "best": record["best_epoch"]})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of the loop.

    Attributes:
      epochs: passes over the data.
      per_epoch: batches of an epoch.
      headline: metric that chooses the best epoch.
      schedule: learning rate by update, for the log.
      accumulate: micro-batches per update.
      log_every, checkpoint_every: in steps; a checkpoint is also written after every epoch.
      label: shown at the progress bar.
      smaller_is_better: whether a smaller headline is the better one.
    """

    epochs: int
    per_epoch: int
    headline: str
    schedule: optax.Schedule
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 500
    label: str = ""
    smaller_is_better: bool = False

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update that micro-batch number `step` (from 1) belongs to."""
        epoch, number = divmod(step - 1, self.per_epoch)
        per_epoch = -(-self.per_epoch // self.accumulate)
        return float(self.schedule(epoch * per_epoch + number // self.accumulate))

    def epoch_text(self, progress: Progress) -> str:
        """A line on the last finished epoch."""
        score = progress.history[-1][self.headline]
        return f"{self.label} epoch {len(progress.history)}: {self.headline} {score:.4f}"

    def lines(self, progress: Progress) -> int:
        """Number of lines that metrics.jsonl has of what was done: of logged steps and of epochs."""
        return progress.step // self.log_every + len(progress.history)

    def note(self, progress: Progress, metrics: dict[str, float]) -> bool:
        """Adds a finished epoch to the history; whether it is the best so far.

        A score that is not a number is worse than every other one.

        Raises:
          ValueError: the metrics lack the headline.
        """
        if self.headline not in metrics:
            raise InputError(
                f"the headline {self.headline!r} is not among the metrics {sorted(metrics)} of the "
                "evaluation; name one of them"
            )
        progress.history.append(metrics)
        score = metrics[self.headline]
        if math.isnan(score):
            _LOG.warning(
                "%s epoch %d: the headline %r is not a number, which counts as worse than every other score",
                self.label, len(progress.history), self.headline,
            )  # fmt: skip
        best = progress.history[progress.best - 1][self.headline] if progress.best else score
        better = score < best if self.smaller_is_better else score > best
        if better or not progress.best or (math.isnan(best) and not math.isnan(score)):
            progress.best = len(progress.history)
            return True
        return False
