"""The newest step of a run, looked at one step later so that the host need not wait for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from lora_jax.training.progress import Progress
from lora_jax.training.step import FINITE


class Step(NamedTuple):
    """A step that was sent to the device.

    Attributes:
      progress: of the run up to this step.
      metrics: what the train step gave; of several runs, arrays with a value of each.
    """

    progress: Progress
    metrics: Mapping[str, ArrayLike]

    @property
    def number(self) -> int:
        """The step's number, from 1."""
        return self.progress.step

    @property
    def finite(self) -> np.ndarray:
        """Whether the step's numbers (or the loss, if a step tells no more) are finite, for each run."""
        if FINITE in self.metrics:
            return np.asarray(self.metrics[FINITE])
        return np.asarray(np.isfinite(np.asarray(self.metrics["loss"])))


class Newest:
    """Keeps the newest step until the next one was sent to the device, and then looks at it."""

    def __init__(self) -> None:
        self._step: Step | None = None

    def known(
        self, progress: Progress, metrics: Mapping[str, ArrayLike], *, now: bool = False
    ) -> list[Step]:
        """The steps whose numbers can be looked at: the one before, and `now` this one too.

        Args:
          progress: up to the step that was just sent to the device.
          metrics: what the train step gave.
          now: whether something will be made of the results of this step.
        """
        newest, before = Step(dataclasses.replace(progress), metrics), self._step
        self._step = None if now else newest
        return ([] if before is None else [before]) + ([newest] if now else [])

    def not_finite(
        self, progress: Progress, metrics: Mapping[str, ArrayLike], *, now: bool = False
    ) -> Step | None:
        """The first of the `known` steps whose numbers are not finite."""
        found = self.known(progress, metrics, now=now)
        return next((each for each in found if not np.all(each.finite)), None)
