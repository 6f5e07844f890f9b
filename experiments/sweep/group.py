"""A group of a sweep: points whose runs can share a program, and what they share."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from experiments import glue
from experiments.runs import classification, data_to_text
from experiments.runs.adaptation import (
    Adaptation,
    Predict,
    optimizer_for,
    training_batches,
    warm_started,
)
from experiments.sweep.points import Point, order_of
from lora_jax import methods, partition
from lora_jax.costs import compiled, flops
from lora_jax.data.batch import Batch, Inputs
from lora_jax.data.batches import TrainingBatches
from lora_jax.method import Method
from lora_jax.partition import Labels, Params
from lora_jax.sharding.mesh import RUN
from lora_jax.sharding.placement import in_host_memory
from lora_jax.sweeps import capacity, padding, runs, step
from lora_jax.sweeps.common_method import common_method

Preparation = classification.Preparation | data_to_text.Preparation


def _glue(config: ConfigDict) -> Preparation:
    return classification.Preparation(config, partial(glue.problem, config))


EXPERIMENTS: Mapping[str, Callable[[ConfigDict], Preparation]] = {
    "glue": _glue,
    "nlg": data_to_text.Preparation,
}
_HEADS = {"glue": classification.Preparation.head, "nlg": data_to_text.Preparation.head}


def method_of(experiment: str, config: ConfigDict) -> Method:
    """A point's own method.

    Raises:
      ValueError: unknown experiment, or a bad argument of the method.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {experiment!r}; known are {sorted(EXPERIMENTS)}")
    return methods.create(head=_HEADS[experiment], **config.method.to_dict())


@dataclasses.dataclass(frozen=True)
class Start:
    """How the run of a point starts.

    Attributes:
      method: its own.
      trainable: its own parameters, not padded.
      labels: group of every parameter.
      values: learning rate, scales, dropout rates.
      counts: of the method's summary.
    """

    method: Method
    trainable: Params
    labels: Labels
    values: runs.RunValues
    counts: dict[str, int]


class Group:
    """Data, base and steps that the points of a group share.

    Attributes:
      points: all points of the group.
      config: of the first; what is not a value of the runs is the same in all.
      preparation: of their experiment: data, scores, records.
      placement: of the base, and of one run's parameters.
    """

    def __init__(self, experiment: str, points: Sequence[Point]):
        """Reads data and base.

        Args:
          experiment: `glue` or `nlg`.
          points: of one group.

        Raises:
          ValueError: unknown experiment, or what its own command would refuse.
        """
        own_methods = [method_of(experiment, point.config) for point in points]
        self._experiment = experiment
        self.points = {point.name: point for point in points}
        self.config = points[0].config
        self.preparation = EXPERIMENTS[experiment](self.config)
        self._model: nnx.Module
        self._model, self._key = self.preparation.model(points[0].seed)
        self._rooms: dict[str, Group] = {}
        self._insert(common_method(own_methods), None)

    def _insert(self, method: Method, like: Adaptation | None) -> None:
        own = self.preparation
        self.method = method
        self.adaptation = Adaptation(
            self.config, self._model, method, self._key, own.mesh, own.head, like
        )
        self.placement = self.adaptation.placement
        self.shapes = padding.shapes_of(self.adaptation.trainable)
        # A CPU's caches hold the activations of few runs: on 2 cores a step of 8 runs of MiniLM in a loop
        # takes 2.25 s, all at once 3.1 to 3.7 s.
        one_cpu = jax.default_backend() == "cpu" and own.mesh.shape[RUN] == 1
        self._at_once = 1 if one_cpu else 0
        self._steps: dict[int, Any] = {}
        self._predict_step = step.make_runs_predict_step(
            self.adaptation.structure, self.placement, own.function, self._at_once
        )

    def with_method(self, method: Method) -> Group:
        """The same data and base with another common method, for programs of smaller ranks."""
        if method == self.method:
            return self
        key = str(method)
        if key not in self._rooms:
            room = self._rooms[key] = copy.copy(self)
            room._insert(method, self.adaptation)
        return self._rooms[key]

    def start(self, point: Point) -> Start:
        """The start of a point's run: what `experiments.glue` or `experiments.nlg` begins with."""
        head, key = self.preparation.start(point.seed)
        method = method_of(self._experiment, point.config)
        with in_host_memory():
            adapted = method.insert(self._model, key)
            labels = method.labels(adapted)
            _, trainable, _ = partition.split(adapted, labels)
            own = {
                path: jnp.asarray(head.get(path, value), jnp.float32)
                for path, value in trainable.items()
            }
            own = warm_started(point.config, own, labels)
        values = runs.run_values(adapted, point.config.learning_rate)
        return Start(method, own, labels, values, method.summary(adapted).counts())

    def batches(self, points: Sequence[Point]) -> TrainingBatches:
        """The batches of these points' runs, in rows as their own configs say."""
        own, config = self.preparation, points[0].config
        assert own.train is not None
        orders = [order_of(point.config) for point in points]
        return training_batches(config, own.train, orders, own.width, own.max_length, own.mesh)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        assert self.preparation.train is not None
        return -(-len(self.preparation.train) // self.config.batch_size)

    @property
    def updates(self) -> int:
        """Updates of a whole run."""
        return self.config.epochs * self.per_epoch // self.config.accumulate

    def optimizer(self, learning_rate: Any) -> optax.GradientTransformation:
        """AdamW of a run with this learning rate, which may be traced."""
        labels = {path: self.adaptation.labels[path] for path in self.adaptation.trainable}
        return optimizer_for(self.config, labels, self.updates, learning_rate)[1]

    def train_step(self, count: int) -> Any:
        """The step of `count` runs; programs of one size share it."""
        if count not in self._steps:
            own = self.adaptation
            self._steps[count] = step.make_runs_train_step(
                own.structure, self.preparation.loss, self.optimizer, self.placement,
                self._stacked(count), at_once=self._at_once,
            )  # fmt: skip
        return self._steps[count]

    def predict(self, trainable: Params, scales: Mapping[str, Any]) -> Predict:
        """What the runs with these parameters give for a batch, see `Predict`."""
        return lambda batch: np.asarray(
            self._predict_step(
                trainable, scales, self.adaptation.frozen, self.placement.batch(batch)
            )
        )

    def flops(self, start: Start, batch: Any) -> int:
        """Model FLOPs of one run's step; batches may have an axis of runs. Padding of ranks counts."""
        one = jax.tree.map(lambda leaf: leaf[0], batch) if batch.weights.ndim == 2 else batch
        own = self.adaptation
        objective = step.make_run_objective(own.structure, self.preparation.loss)
        key = jax.random.key(0, impl=self.config.prng)
        trainable = padding.padded(start.trainable, self.shapes)
        return flops.training(objective, trainable, start.values, own.frozen, one, key)

    def _stacked(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            path: jax.ShapeDtypeStruct((count, *shape), jnp.float32)
            for path, shape in self.shapes.items()
        }

    def runs_that_fit(self) -> int:
        """The most runs of a program that the devices' memory holds: measured by compiling two."""
        ways = self.placement.mesh.shape[RUN]
        budget = capacity.free_bytes(jax.local_devices()[0]) + self._frozen_bytes
        return capacity.fitting(self._needed_bytes, budget, ways, len(self.points))

    @property
    def _frozen_bytes(self) -> int:
        frozen = self.adaptation.frozen.values()
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in frozen)

    @cached_property
    def _values(self) -> runs.RunValues:
        """Of all points; for the structure that a program's values have."""
        return runs.stack([self.start(point).values for point in self.points.values()])

    def _needed_bytes(self, count: int) -> int:
        """Of each device, in the train step of the largest batch."""
        of_runs, each = self.placement.of_runs(), self.placement.each_run
        shapes, states = self._stacked(count), step.initial_states(self.optimizer)
        rates = jax.ShapeDtypeStruct((count,), jnp.float32)
        state = jax.eval_shape(states, dict(shapes), rates)
        keys = jax.eval_shape(
            lambda: jax.random.split(jax.random.key(0, impl=self.config.prng), count)
        )
        arguments = (
            jax.tree.map(_abstract, dict(shapes), of_runs.shardings(shapes)),
            jax.tree.map(_abstract, state, of_runs.state_shardings(state, shapes)),
            jax.tree.map(lambda leaf: _abstract(rates, each), self._values),
            self.adaptation.frozen,
            self._largest_batch(count),
            _abstract(keys, each),
            _abstract(jax.ShapeDtypeStruct((), jnp.uint32), self.placement.replicated),
        )
        return compiled.needs(self.train_step(count), arguments, None).peak

    def _largest_batch(self, count: int) -> Batch:
        """Shapes of the largest usual batch; with an axis of runs if their orders differ."""
        members = list(self.points.values())
        ways = self.placement.mesh.shape[RUN]
        data = self.batches(members + members[-1:] * (-len(members) % ways))
        rows, length = data.menu.shapes[-1]
        first = self.placement.batch(next(data.epoch(0)))
        lead = (count,) * (first.inputs.tokens.ndim - 2)

        def shaped(leaf: jax.Array, *own: int) -> Any:
            return jax.ShapeDtypeStruct((*lead, *own), leaf.dtype, sharding=leaf.sharding)

        inputs = [shaped(field, rows, length) for field in first.inputs]
        slots = {k: shaped(v, data.slots) for k, v in first._asdict().items() if k != "inputs"}
        return first._replace(inputs=Inputs(*inputs), **slots)


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
