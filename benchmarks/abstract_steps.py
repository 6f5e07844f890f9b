"""A train step in shapes, to be traced or compiled: no weights and no data are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from lora_jax import partition
from lora_jax.data.batch import Batch
from lora_jax.method import Method
from lora_jax.training import optimizer, step


class Step(NamedTuple):
    """A train step and its arguments.

    Attributes:
      objective: the loss, of the trainable leaves, the frozen ones, a batch and a key.
      train: the step.
      labels: groups of the leaves by path.
      arguments: of `train`.
    """

    objective: Callable[..., Array]
    train: Any
    labels: partition.Labels
    arguments: tuple[PyTree, ...]


def make(model: nnx.Module, method: Method, loss: step.Loss, batch: Batch) -> Step:
    """The step of a method on a model, with AdamW.

    Args:
      model: in shapes.
      method: to train it.
      loss: of the model, a batch and a key.
      batch: arrays or shapes.
    """
    adapted = nnx.eval_shape(lambda m: method.insert(m, jax.random.key(0)), model)
    labels = method.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    tx = optimizer.adamw({path: labels[path] for path in trainable}, 1e-4)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = trainable, jax.eval_shape(tx.init, trainable), frozen, batch, key
    train = step.make_train_step(structure, loss, tx)
    return Step(step.make_objective(structure, loss), train, labels, arguments)
