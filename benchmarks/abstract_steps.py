"""Train steps in shapes, to be traced or compiled: no weights and no data are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from lora_jax import partition
from lora_jax.data.batch import Batch
from lora_jax.method import Around, Method
from lora_jax.quantisation.weight import value_counts
from lora_jax.sweeps import step as sweep_step
from lora_jax.sweeps.common_method import common_method
from lora_jax.sweeps.runs import run_values
from lora_jax.sweeps.runs import stack as stack_values
from lora_jax.training import optimizer, step

LEARNING_RATE = 1e-4
_UPDATES = 1000  # of a run, for methods with a schedule


class Step(NamedTuple):
    """A train step and its arguments.

    Attributes:
      objective: the loss, of the trainable leaves, the frozen ones, a batch and a key.
      train: the step.
      labels: groups of the leaves by path.
      arguments: of `train`.
      initial: the function of trainable leaves that makes the optimizer's state.
    """

    objective: Callable[..., Array]
    train: Any
    labels: partition.Labels
    arguments: tuple[PyTree, ...]
    initial: Callable[..., PyTree]


class _Adapted(NamedTuple):
    """A model with a method, in shapes."""

    model: nnx.Module
    labels: partition.Labels
    structure: partition.Structure
    trainable: partition.Params
    frozen: partition.Params
    of_method: Around | None

    def optimizer(self, rate: Any = LEARNING_RATE) -> optax.GradientTransformation:
        """AdamW of what trains, and what the method does to it."""
        labels = {path: self.labels[path] for path in self.trainable}
        return optimizer.adamw(labels, rate, of_method=self.of_method)


def _adapted(model: nnx.Module, method: Method, base_dtype: str | None) -> _Adapted:
    adapted = nnx.eval_shape(lambda m: method.insert(m, jax.random.key(0)), model)
    labels = method.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    if base_dtype is not None:
        packed = value_counts(adapted)
        frozen = {
            path: leaf if path in packed else _of_type(leaf, base_dtype)
            for path, leaf in frozen.items()
        }
    of_method = method.around(adapted, _UPDATES)
    return _Adapted(adapted, labels, structure, trainable, frozen, of_method)


def _of_type(leaf: Any, dtype: str) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def make(
    model: nnx.Module,
    method: Method,
    loss: step.Loss,
    batch: Batch,
    base_dtype: str | None = None,
) -> Step:
    """The step of a method on a model, with AdamW.

    Args:
      model: in shapes.
      method: to train it.
      loss: of the model, a batch and a key.
      batch: arrays or shapes.
      base_dtype: of what is frozen and not packed; None: as the model has it.
    """
    of = _adapted(model, method, base_dtype)
    tx = of.optimizer()
    state = jax.eval_shape(tx.init, of.trainable)
    arguments = of.trainable, state, of.frozen, batch, _key()
    train = step.make_train_step(of.structure, loss, tx)
    objective = step.make_objective(of.structure, loss)
    return Step(objective, train, of.labels, arguments, tx.init)


def make_runs(
    model: nnx.Module,
    method: Method,
    loss: step.Loss,
    batch: Batch,
    runs: int,
    base_dtype: str | None = None,
) -> Step:
    """The step of a sweep's program: runs of one method with a batch each.

    Args:
      model: in shapes.
      method: of each run.
      loss: of the model, a batch and a key.
      batch: arrays or shapes with a first axis of runs.
      runs: of the program.
      base_dtype: of what is frozen and not packed; None: as the model has it.
    """
    of = _adapted(model, common_method([method]), base_dtype)
    values = stack_values(
        [run_values(_adapted(model, method, base_dtype).model, LEARNING_RATE)] * runs
    )
    stacked = {
        path: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype)
        for path, leaf in of.trainable.items()
    }
    initial = sweep_step.initial_states(of.optimizer)
    rates = values.learning_rate
    state = jax.eval_shape(initial, stacked, rates)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), runs))
    number = jax.ShapeDtypeStruct((), jnp.uint32)
    arguments = stacked, state, values, of.frozen, batch, keys, number
    train = sweep_step.make_runs_train_step(of.structure, loss, of.optimizer)
    objective = sweep_step.make_run_objective(of.structure, loss)
    return Step(objective, train, of.labels, arguments, lambda trainable: initial(trainable, rates))
