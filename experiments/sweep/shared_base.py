"""What the points of a sweep share that can be one program: data, and one frozen base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.runs.run import model_record
from experiments.runs.task import Task, training_batches
from experiments.sweep.experiment import experiment
from experiments.sweep.points import Point
from experiments.sweep.steps import Steps
from lora_jax import partition
from lora_jax.data.batches import TrainingBatches
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.methods.gradient_start import waiting_weights
from lora_jax.partition import Labels, Params
from lora_jax.sharding.placement import in_host_memory
from lora_jax.state import fixed, seeded
from lora_jax.sweeps import runs
from lora_jax.sweeps.common_method import common_method
from lora_jax.training import AdaptedModel
from lora_jax.training.adapted_model import warm_started, warm_state
from lora_jax.training.records import lora_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """How the run of a point starts.

    Attributes:
      trainable: the run's parameters, not padded.
      labels: group of every parameter.
      values: learning rate, scales, dropout rates.
      record: what the run record says of the model, see `model_record`.
    """

    trainable: Params
    labels: Labels
    values: runs.RunValues
    record: Mapping[str, Any]


class SharedBase:
    """Data and base of compatible points, and the steps of the programs over them.

    Attributes:
      points: by name.
      settings: of the first point; what is not a value of the runs is the same in all.
      task: of their experiment: data, scores, records.
      widest: steps with room for every point's rank.
    """

    def __init__(self, experiment_name: str, points: Sequence[Point], task: Task | None = None):
        """Reads data and base.

        Args:
          experiment_name: `glue` or `nlg`.
          points: that can be one program.
          task: of one of them or of their like, if its data are read already.

        Raises:
          ValueError: unknown experiment, or what its own command would refuse.
        """
        self.points = {point.name: point for point in points}
        self._gradient_starts: dict[str, tuple[Params, Params]] = {}
        self.settings = points[0].settings
        self.task = task or experiment(experiment_name).task(points[0].config)
        self.task.prepare()
        self._model: nnx.Module
        self._model, self._key = self.task.model(points[0].seed)
        self.widest = self._new_steps(common_method([point.method for point in points]), None)
        self._steps = {str(self.widest.method): self.widest}

    def _new_steps(self, method: Method, widest: Steps | None) -> Steps:
        return Steps(
            self._model, method, self.task, optimizer=self._optimizer, key=self._key,
            share_frozen_with=None if widest is None else widest.model,
        )  # fmt: skip

    def steps(self, method: Method) -> Steps:
        """The steps of programs with this common method; programs of smaller ranks have less padding."""
        if str(method) not in self._steps:
            self._steps[str(method)] = self._new_steps(method, self.widest)
        return self._steps[str(method)]

    def start(self, point: Point) -> Start:
        """The start of a point's run: what its experiment begins with."""
        head, key = self.task.start(point.seed)
        with in_host_memory():
            adapted = point.method.insert(self._model, key)
            labels = point.method.labels(adapted)
            _, fresh, frozen = partition.split(adapted, labels)
            trainable = {
                path: jnp.asarray(head.get(path, value), jnp.float32)
                for path, value in fresh.items()
            }
            trainable |= self._common_start(trainable)
            trainable |= self.task.factors(self._model, point.method, key)
            settings = point.settings.train
            own: Params = {}
            if waiting_weights(adapted):
                trainable, own = self._started_from_gradients(point, trainable, key)
            if settings.init_adapter:
                trainable = warm_started(
                    trainable, labels, settings.init_adapter, bases=self.widest.model.bases,
                    method=point.method, adapted=adapted,
                )  # fmt: skip
                paths = (*fixed(adapted), *seeded(adapted))
                own = {**own, **warm_state(paths, frozen, settings.init_adapter)}
        summary = point.method.summary(adapted)
        return Start(
            trainable=trainable,
            labels=labels,
            values=runs.run_values(adapted, settings.learning_rate, own),
            record=model_record(summary, lora_layers(summary)),
        )

    def _started_from_gradients(
        self, point: Point, trainable: Params, key: jax.Array
    ) -> tuple[Params, Params]:
        """LoRA-GA's start of a run, from its own examples and head: factors, and what is fixed of them."""
        same = to_json([point.method.to_json(), point.seed, point.order], indent=None)
        if same not in self._gradient_starts:  # as for other learning rates
            model = AdaptedModel(
                self._model, point.method, key=key, mesh=self.task.mesh, head=self.task.head,
                dtype=self.settings.train.dtype, share_frozen_with=self.widest.model,
            )  # fmt: skip
            model.trainable |= trainable
            batches = training_batches(self.task, point.settings, [point.order])
            count = point.settings.train.gradient_batches
            model.start_from_gradients(self.task.loss, batches, count)
            fixed = {path: jnp.asarray(np.asarray(v)) for path, v in model.kept({}).items()}
            self._gradient_starts[same] = dict(model.trainable), fixed
        return self._gradient_starts[same]

    def _common_start(self, trainable: Params) -> Params:
        """The factors whose start all runs share (PiSSA, OLoRA): the frozen part's, to the bit."""
        frozen = self.widest.model.frozen
        starts = {path: frozen.get(f"{path}_start") for path in trainable}
        return {
            path: jnp.asarray(np.asarray(value))
            for path, value in starts.items()
            if value is not None
        }

    def batches(self, points: Sequence[Point]) -> TrainingBatches:
        """The batches of these points' runs, in rows as their configs say."""
        return training_batches(self.task, points[0].settings, [point.order for point in points])

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        assert self.task.train is not None
        return -(-len(self.task.train) // self.settings.batch_size)

    def _optimizer(
        self, model: AdaptedModel, labels: Labels, learning_rate: float | jax.Array
    ) -> optax.GradientTransformation:
        """AdamW of a run with this learning rate, which may be traced."""
        return self.settings.train.optimizer(
            labels, self.per_epoch, learning_rate, model.of_method
        )[1]
