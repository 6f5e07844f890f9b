"""The train step of a plan in shapes: nothing is computed, no weights and no data are needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from experiments.adaptation import optimizer_for
from lora_jax import partition
from lora_jax.costs import flops
from lora_jax.data.packing import Batch
from lora_jax.method import Method
from lora_jax.models import decoder, encoder, hub
from lora_jax.models.attention import Inputs
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import check_heads
from lora_jax.sharding.placement import Placement
from lora_jax.training import step

_CLASSES = 2
_UPDATES = 1000  # numbers of the schedule, which cost nothing


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A train step that can be compiled.

    Attributes:
      function: from `make_train_step`.
      arguments: its arguments, shapes with shardings.
      flops: of one step, all devices together.
      trainable, total: numbers of parameters.
    """

    function: Any
    arguments: tuple[Any, ...]
    flops: int
    trainable: int
    total: int


def model_config(config: ConfigDict) -> Any:
    """Sizes and settings of the plan's model.

    Raises:
      ValueError: no such model.
    """
    sizes: dict[str, Any] = {**encoder.SIZES, **decoder.SIZES}
    if config.model.size not in sizes:
        raise ValueError(f"unknown model {config.model.size!r}; known are {sorted(sizes)}")
    settings = {k: v for k, v in config.model.items() if k != "size"}
    own = sizes[config.model.size]
    return dataclasses.replace(own, compute_dtype=str(config.base_dtype), **settings)


def is_classifier(config: ConfigDict) -> bool:
    """Whether the plan's model is an encoder with a task head."""
    return config.model.size in encoder.SIZES


def build(config: ConfigDict, method: Method, mesh: Mesh, rows: int) -> AbstractStep:
    """The train step of `method` for batches of `rows` token rows.

    Raises:
      ValueError: the mesh does not fit the model.
    """
    sizes = model_config(config)
    check_heads(sizes.heads, mesh)

    def make() -> nnx.Module:
        rngs = nnx.Rngs(0)
        if is_classifier(config):
            return encoder.Classifier(sizes, _CLASSES, rngs)
        return decoder.Decoder(sizes, rngs)

    model = nnx.eval_shape(lambda: method.insert(make(), jax.random.key(0)))
    labels = method.labels(model)
    structure, *both = partition.split(model, labels)
    types = (jnp.float32, jnp.dtype(config.base_dtype))
    trainable, frozen = (
        {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in part.items()}
        for part, dtype in zip(both, types, strict=True)
    )
    _, tx = optimizer_for(config, {path: labels[path] for path in trainable}, _UPDATES)
    loss = step.classification_loss if is_classifier(config) else step.completion_loss()
    placement = Placement(mesh, axes.of_model(model))
    function = step.make_train_step(structure, loss, tx, placement, trainable)
    state = jax.eval_shape(tx.init, trainable)
    batch = abstract_batch(config, rows, placement)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=config.prng))
    arguments = (
        _placed(trainable, placement.shardings(trainable)),
        _placed(state, placement.state_shardings(state, trainable)),
        _placed(frozen, placement.shardings(frozen)),
        batch,
        _placed(key, placement.replicated),
    )
    count = flops.training(
        step.make_objective(structure, loss), trainable, frozen, batch, arguments[-1]
    )
    total = partition.count({**trainable, **frozen})
    return AbstractStep(function, arguments, count, partition.count(trainable), total)


def abstract_batch(config: ConfigDict, rows: int, placement: Placement) -> Batch:
    """A packed batch of the plan in shapes."""
    split = axes.spec(("batch", None), placement.mesh.axis_names)
    field: Any = jax.ShapeDtypeStruct(
        (rows, config.length), jnp.int32, sharding=NamedSharding(placement.mesh, split)
    )
    slots: Any = [
        jax.ShapeDtypeStruct((rows * config.outputs,), dtype, sharding=placement.replicated)
        for dtype in (jnp.int32, jnp.int32, jnp.int32, jnp.float32)
    ]
    return Batch(Inputs(*[field] * 4), *slots)


def head_pattern(config: ConfigDict) -> str | None:
    """The head's leaves, where there is one."""
    return hub.HEAD if is_classifier(config) else None


def _placed(shapes: Any, shardings: Any) -> Any:
    place = lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)
