"""The compiled steps of programs that have one common method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.runs.task import Task, check_updates
from lora_jax.costs import flops
from lora_jax.costs.compiled import Jitted
from lora_jax.data.batch import Batch
from lora_jax.method import Method
from lora_jax.partition import Labels, Params
from lora_jax.sharding.mesh import RUN
from lora_jax.sweeps import padding, runs, step
from lora_jax.training import AdaptedModel
from lora_jax.training.adapted_model import Predict

Optimizer = Callable[[AdaptedModel, Labels, Any], optax.GradientTransformation]


class Steps:
    """A base with the common method of some runs, and what is compiled for them.

    Attributes:
      method: the common one; its ranks are the largest of the runs'.
      model: the base with this method; its trainable part has the shapes of padded runs.
      shapes: of the padded parameters of one run, by path.
    """

    def __init__(
        self, model: nnx.Module, method: Method, task: Task, *, optimizer: Optimizer,
        key: jax.Array, share_frozen_with: AdaptedModel | None,
    ):  # fmt: skip
        """Inserts the common method.

        Args:
          model: pre-trained.
          method: the common one.
          task: of the runs.
          optimizer: of (model, labels of what trains, learning rate); the rate may be traced.
          key: for initial values, which no run uses.
          share_frozen_with: the same base with another common method, or None.
        """
        self.method, self._task = method, task
        self.model = AdaptedModel(
            model, method, key=key, mesh=task.mesh, head=task.head,
            dtype=task.settings.train.dtype, share_frozen_with=share_frozen_with,
        )  # fmt: skip
        if task.settings.verify and share_frozen_with is None:
            check_updates(task, self.model)
        self.placement = self.model.placement
        self.shapes = padding.shapes_of(self.model.trainable)
        labels = {path: self.model.labels[path] for path in self.model.trainable}
        self.optimizer: Callable[[Any], optax.GradientTransformation] = lambda rate: optimizer(
            self.model, labels, rate
        )
        # A CPU's caches hold the activations of few runs: on 2 cores a step of 8 runs of MiniLM in a loop
        # takes 2.25 s, all at once 3.1 to 3.7 s.
        one_cpu = jax.default_backend() == "cpu" and task.mesh.shape[RUN] == 1
        self.at_once = 1 if one_cpu else 0
        self._train_steps: dict[int, Jitted] = {}
        self._predict_step = step.make_runs_predict_step(
            self.model.structure, self.placement, task.function, self.at_once
        )

    def train_step(self, count: int) -> Jitted:
        """The train step of `count` runs; programs of one size share it."""
        if count not in self._train_steps:
            self._train_steps[count] = step.make_runs_train_step(
                self.model.structure, self._task.loss, self.optimizer, self.placement,
                self.stacked(count), at_once=self.at_once,
            )  # fmt: skip
        return self._train_steps[count]

    def predict(self, trainable: Params, values: runs.RunValues) -> Predict:
        """What the runs with these parameters give for a batch, with a first axis of runs."""
        return lambda batch: np.asarray(
            self._predict_step(trainable, values, self.model.frozen, self.placement.batch(batch))
        )

    def flops(self, trainable: Params, values: runs.RunValues, batch: Batch) -> int:
        """Model FLOPs of one run's step; batches may have an axis of runs. Padding of ranks counts.

        Args:
          trainable: of one run, not padded.
          values: of one run.
          batch: of one run or of several.
        """
        one = jax.tree.map(lambda leaf: leaf[0], batch) if batch.weights.ndim == 2 else batch
        objective = step.make_run_objective(self.model.structure, self._task.loss)
        key = jax.random.key(0, impl=self._task.settings.train.prng)
        padded = padding.padded(trainable, self.shapes)
        return flops.training(objective, padded, values, self.model.frozen, one, key)

    def stacked(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the parameters of so many runs, with a first axis of runs."""
        return {
            path: jax.ShapeDtypeStruct((count, *shape), jnp.float32)
            for path, shape in self.shapes.items()
        }
