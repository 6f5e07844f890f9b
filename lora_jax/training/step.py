"""Train and evaluation steps: pure functions under `jax.jit` on a partitioned model.

The trainable part and the optimizer state are donated; the frozen part is an argument that is
neither differentiated, nor closed over, nor returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from lora_jax import partition
from lora_jax.arguments import Model
from lora_jax.checks import integer
from lora_jax.data.batch import Batch
from lora_jax.errors import InputError
from lora_jax.low_rank import seeding
from lora_jax.partition import Params, Structure
from lora_jax.sharding.placement import Placement
from lora_jax.state import moved
from lora_jax.training import chunked_loss

Metrics = dict[str, jax.Array]
FINITE = "finite"  # the metric by which a run is known to have diverged
Loss = Callable[[Model, Any, jax.Array | None], Float[Array, ""]]  # of (model, batch, key)
Weight = Callable[[Any], jax.Array | float]  # of a batch
TrainStep = Callable[[Params, Any, Params, Any, jax.Array], tuple[Params, Any, Params, Metrics]]


def outputs(model: nnx.Module, batch: Batch) -> jax.Array:
    """The outputs of a model for a packed batch, one per slot."""
    result: jax.Array = model(batch.inputs, batch.rows, batch.columns)  # type: ignore[operator]
    return result


def classification_loss(model: nnx.Module, batch: Batch, key: jax.Array | None) -> Float[Array, ""]:
    """Mean cross-entropy over the batch's examples; `key` switches dropout on."""
    logits = model(batch.inputs, batch.rows, batch.columns, key=key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights)


def regression_loss(model: nnx.Module, batch: Batch, key: jax.Array | None) -> Float[Array, ""]:
    """Mean squared error over the batch's examples (STS-B)."""
    outputs = model(batch.inputs, batch.rows, batch.columns, key=key)[:, 0]
    return jnp.sum((outputs - batch.labels) ** 2 * batch.weights) / jnp.sum(batch.weights)


def completion_losses(
    model: nnx.Module,
    batch: Batch,
    key: jax.Array | None,
    smoothing: float = 0.0,
    chunk: int | None = None,
) -> Float[Array, " slots"]:
    """Cross-entropy of every completion token, smoothed as the public GPT-2 code does.

    (1 - e) * (-log p[target]) + e * mean over the vocabulary of -log p; unused slots give 0.

    Args:
      model: a decoder, whose logits are computed chunk by chunk, or another model with its arguments.
      batch: packed.
      key: switches dropout on.
      smoothing: e.
      chunk: most slots whose logits are held at once; None: see `chunked_loss.chunk_shape`.
    """
    return chunked_loss.losses(model, batch, key, smoothing, chunk)


def completion_loss(smoothing: float = 0.0, chunk: int | None = None) -> Loss[nnx.Module]:
    """Mean loss of a batch's completion tokens (the paper's GPT-2 runs; no token of the context).

    Args:
      smoothing: label smoothing e, 0.1 in Table 11.
      chunk: see `completion_losses`.

    Raises:
      ValueError: `smoothing` is out of its range, or `chunk` is no positive integer.
    """
    if chunk is not None:
        chunk = integer("chunk", chunk)
    if not 0 <= smoothing < 1:
        raise InputError(f"label smoothing must be in [0, 1), got {smoothing!r}")

    def loss(model: nnx.Module, batch: Batch, key: jax.Array | None) -> Float[Array, ""]:
        total = chunked_loss.total(model, batch, key, smoothing, chunk)
        return total / (jnp.sum(batch.weights) + 1e-4)  # the public code's constant

    return loss


def batch_weight(batch: Any) -> jax.Array | float:
    """What a batch counts where the gradients of several make one update: its examples or tokens.

    Of a packed `Batch` the sum of its slots' weights, over which its loss is a mean; of other trees of
    arrays the length of the first axis.
    """
    if isinstance(batch, Batch):
        return jnp.sum(batch.weights)
    shapes = [leaf.shape for leaf in jax.tree.leaves(batch) if getattr(leaf, "shape", ())]
    return float(shapes[0][0]) if shapes else 1.0


def all_finite(*trees: Any) -> jax.Array:
    """Whether all floating-point numbers of some trees of arrays are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def make_objective(
    structure: Structure[Model], loss: Loss[Model]
) -> Callable[[Params, Params, Any, jax.Array], Float[Array, ""]]:
    """Builds `objective(trainable, frozen, batch, key)`: the loss with dropout."""
    with_state = _objective_with_state(structure, loss)
    return lambda *arguments: with_state(*arguments)[0]


def _objective_with_state(
    structure: Structure[Model], loss: Loss[Model]
) -> Callable[[Params, Params, Any, jax.Array], tuple[Float[Array, ""], Params]]:
    """The same, with what the model wrote of its state beside the loss."""

    def objective(
        trainable: Params, frozen: Params, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        model = partition.join(structure, trainable, frozen)
        for_model, for_branches = jax.random.split(key)
        seeding.seed_dropout(model, for_branches)
        return loss(model, batch, for_model), moved(frozen, model)

    return objective


def make_train_step(
    structure: Structure[Model],
    loss: Loss[Model],
    optimizer: optax.GradientTransformation,
    placement: Placement | None = None,
    trainable: Mapping[str, Any] | None = None,
    weight: Weight = batch_weight,
) -> Any:
    """Builds `step(trainable, state, frozen, batch, key) -> (trainable, state, moved, metrics)`.

    `moved` is what the model wrote of its own state, such as batch statistics ({} for most models):
    give the next step `{**frozen, **moved}`. The model trains in the mode in which it was split: where
    `nnx.Dropout` and `nnx.BatchNorm` should be active, call `model.train()` before.

    The key is of this step; it seeds dropout of the model and of the LoRA branches. `trainable` and
    `state` are donated: their arrays are gone afterwards. A head that a method trains is the base
    model's own, so copy `trainable` first (`jax.tree.map(jnp.copy, trainable)`) to use the base again.

    The metrics are `loss`, `grad_norm` and `finite`: whether these two, the new parameters and what the
    model wrote are finite numbers.

    Args:
      structure: of the model, from `partition.split`.
      loss: of (model, batch, key).
      optimizer: of the trainable part.
      placement: with it the arguments must lie as it says, and so do the results.
      trainable: arrays or shapes of the trainable part; needed with a placement.
      weight: of a batch, for an optimizer that takes it (`optimizer.accumulated`): that over which the
        loss is a mean.

    Returns:
      A function under `jax.jit` (it can be lowered and compiled ahead, too).
    """
    objective = _objective_with_state(structure, loss)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(
        trainable: Params, state: Any, frozen: Params, batch: Any, key: jax.Array
    ) -> tuple[Params, Any, Params, Metrics]:
        of = jax.value_and_grad(objective, has_aux=True)
        (value, written), gradients = of(trainable, frozen, batch, key)
        updates, state = optimizer.update(gradients, state, trainable, weight=weight(batch))
        metrics = {"loss": value, "grad_norm": optax.global_norm(gradients)}
        trainable = optax.apply_updates(trainable, updates)
        metrics[FINITE] = all_finite(metrics, trainable, written)
        written = written if placement is None else placement.constrain(written)
        return trainable, state, written, metrics

    if placement is None:
        return jax.jit(step, donate_argnums=(0, 1))
    assert trainable is not None
    states = placement.state_shardings(jax.eval_shape(optimizer.init, dict(trainable)), trainable)
    places = (placement.shardings(trainable), states, None, placement.replicated)
    return placement.jit(step, donate_argnums=(0, 1), out_shardings=places)


def make_predict_step(
    structure: Structure[Model],
    function: Callable[[Model, Any], Any] = outputs,
    placement: Placement | None = None,
) -> Callable[[Params, Params, Any], Any]:
    """Builds `predict(trainable, frozen, batch)`: the model in evaluation mode.

    Nothing is dropped, `nnx.BatchNorm` uses its running statistics, and what the model writes is
    forgotten. State that moved in training goes with the trainable part: `{**trainable, **moved}`.

    Args:
      structure: of the model.
      function: of (model, batch); the default gives the model's outputs, one per slot.
      placement: with it the results are whole on every device, so that every host can read them.
    """

    def predict(trainable: Params, frozen: Params, batch: Any) -> Any:
        model = partition.join(structure, trainable, frozen)
        model.eval()
        return function(model, batch)

    if placement is None:
        return jax.jit(predict)
    compiled: Callable[[Params, Params, Any], Any] = placement.jit(
        predict, out_shardings=placement.replicated
    )
    return compiled
