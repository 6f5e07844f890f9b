"""The train steps of a plan in shapes: nothing is computed, no weights and no data are needed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.plan import models
from experiments.plan.shapes import abstract_batch, first_run, placed
from experiments.plan.variants import Variant
from experiments.runs.settings import train_settings
from lora_jax import partition
from lora_jax.costs import flops
from lora_jax.costs.compiled import Jitted
from lora_jax.method import Around
from lora_jax.models.parts import FLOAT
from lora_jax.quantisation.quantise import quantise
from lora_jax.quantisation.weight import value_counts
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import check_heads
from lora_jax.sharding.placement import Placement
from lora_jax.sweeps import step as sweep_step
from lora_jax.sweeps.common_method import common_method
from lora_jax.sweeps.runs import run_values, stack
from lora_jax.training import step

_PER_EPOCH = 1000  # numbers of the schedule, which cost nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractStep:
    """A train step that can be compiled.

    Attributes:
      function: from `make_train_step` or `make_runs_train_step`.
      arguments: its arguments, shapes with shardings.
      frozen: those among them that belong to the base.
      flops: of one step, all devices and runs together.
      trainable, total: numbers of parameters, of all runs; total has the base once.
    """

    function: Jitted
    arguments: tuple[Any, ...]
    frozen: dict[str, Any]
    flops: int
    trainable: int
    total: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parts:
    """A model with a method, in shapes, as the steps of one run and of several take it."""

    config: ConfigDict
    structure: partition.Structure
    labels: partition.Labels
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    placement: Placement
    loss: step.Loss
    packed: dict[str, int]
    of_method: Callable[[int], Around | None]

    def optimizer(self, learning_rate: Any = None) -> optax.GradientTransformation:
        """AdamW as the config says, with its learning rate or this one."""
        labels = {path: self.labels[path] for path in self.trainable}
        settings = train_settings(self.config)
        return settings.optimizer(labels, _PER_EPOCH, learning_rate, self.of_method)[1]

    @property
    def placed_frozen(self) -> dict[str, Any]:
        return placed(self.frozen, self.placement.shardings(self.frozen))


def _abstract_model(config: ConfigDict, variant: Variant) -> nnx.Module:
    """The plan's model with a method.

    Raises:
      ValueError: no such model.
    """
    sizes = models.model_config(config, variant.base_dtype)
    base = nnx.eval_shape(lambda: models.make(sizes))
    if variant.base_format != FLOAT:
        base = quantise(base, format=variant.base_format)
    return nnx.eval_shape(lambda: variant.method.insert(base, jax.random.key(0)))


def _parts(config: ConfigDict, variant: Variant, mesh: Mesh) -> _Parts:
    check_heads(models.heads(config), mesh)
    model = _abstract_model(config, variant)
    labels = variant.method.labels(model)
    structure, *both = partition.split(model, labels)
    types, packed = (jnp.float32, jnp.dtype(variant.base_dtype)), value_counts(model)
    trainable, frozen = (
        {
            path: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype if path in packed or path not in labels else dtype
            )
            for path, leaf in part.items()
        }
        for part, dtype in zip(both, types, strict=True)
    )
    classifies = models.is_classifier(config)
    loss = step.classification_loss if classifies else step.completion_loss()
    placement = Placement(mesh, axes.of_model(model))
    return _Parts(
        config=config, structure=structure, labels=labels, trainable=trainable, frozen=frozen,
        placement=placement, loss=loss, packed=packed,
        of_method=functools.partial(variant.method.around, model),
    )  # fmt: skip


def build(config: ConfigDict, variant: Variant, mesh: Mesh, rows: int) -> AbstractStep:
    """The train step of a variant for batches of `rows` token rows.

    Raises:
      ValueError: the mesh does not fit the model.
    """
    parts = _parts(config, variant, mesh)
    placement, trainable, tx = parts.placement, parts.trainable, parts.optimizer()
    function = step.make_train_step(parts.structure, parts.loss, tx, placement, trainable)
    state = jax.eval_shape(tx.init, trainable)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=config.prng))
    arguments = (
        placed(trainable, placement.shardings(trainable)),
        placed(state, placement.state_shardings(state, trainable)),
        parts.placed_frozen,
        abstract_batch(config, rows, placement),
        placed(key, placement.replicated),
    )
    objective = step.make_objective(parts.structure, parts.loss)
    count = flops.training(objective, trainable, *arguments[2:])
    values = partition.count(trainable)
    return AbstractStep(
        function=function, arguments=arguments, frozen=arguments[2], flops=count, trainable=values,
        total=values + partition.count(parts.frozen, parts.packed),
    )  # fmt: skip


def build_runs(
    config: ConfigDict, variant: Variant, mesh: Mesh, rows: int, runs: int
) -> AbstractStep:
    """The train step of a sweep's program: `runs` runs of a variant, each with `rows` token rows.

    The method's rank is that of all runs: the largest one of the sweep, to which others are padded.
    With `config.orders` "shared" all runs have the same batch, else each has its own.

    Raises:
      ValueError: the mesh does not fit the model.
    """
    common = dataclasses.replace(variant, method=common_method([variant.method]))
    parts = _parts(config, common, mesh)
    of_run = run_values(_abstract_model(config, variant), config.learning_rate)
    values = stack([of_run] * runs)
    placement, of_runs = parts.placement, parts.placement.of_runs()
    each, batch_of_each_run = placement.each_run, config.orders != "shared"
    trainable = {
        path: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype)
        for path, leaf in parts.trainable.items()
    }
    function = sweep_step.make_runs_train_step(
        parts.structure, parts.loss, parts.optimizer, placement, trainable
    )
    rates = jax.ShapeDtypeStruct((runs,), jnp.float32)
    state = jax.eval_shape(sweep_step.initial_states(parts.optimizer), trainable, rates)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0, impl=config.prng), runs))
    arguments = (
        placed(trainable, of_runs.shardings(trainable)),
        placed(state, of_runs.state_shardings(state, trainable)),
        jax.tree.map(lambda leaf: placed(leaf, each), values),
        parts.placed_frozen,
        abstract_batch(config, rows, placement, runs if batch_of_each_run else None),
        placed(keys, each),
        placed(jax.ShapeDtypeStruct((), jnp.uint32), placement.replicated),
    )
    count = runs * flops.training(
        sweep_step.make_run_objective(parts.structure, parts.loss), parts.trainable,
        first_run(values), parts.frozen, abstract_batch(config, rows, placement), first_run(keys),
    )  # fmt: skip
    trained = partition.count(trainable)
    return AbstractStep(
        function=function, arguments=arguments, frozen=arguments[3], flops=count,
        trainable=trained, total=trained + partition.count(parts.frozen, parts.packed),
    )  # fmt: skip
