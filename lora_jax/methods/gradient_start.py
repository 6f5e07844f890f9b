"""LoRA-GA: factors that start from the gradient of the weight (Wang et al. 2024, arXiv 2407.05000).

    method = lora_jax.lora("all-linear", init="lora_ga", scaling="alpha/sqrt(r)")
    adapted = lora_jax.start_from_gradients(method.insert(base, key), loss, batches)

The trainer does this by itself, before its first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax import partition
from lora_jax.arguments import FUNCTION, MODEL, Model, takes
from lora_jax.errors import InputError
from lora_jax.low_rank import starts
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_of, pairs_with_weights
from lora_jax.low_rank.weights import WeightView
from lora_jax.sharding.layout import automatically

Gradients = dict[str, Array]


def waiting_weights(adapted: nnx.Module) -> dict[str, str]:
    """The paths of the weights whose gradient starts an update, by the paths of their layers.

    Raises:
      ValueError: such a weight is not of floating-point numbers.
    """
    found: dict[str, str] = {}
    layers = {
        path: layer
        for path, layer in adapted_layers(adapted).items()
        if any(hasattr(pair, "gamma") for pair in pairs_of(layer.lora).values())
    }
    floats = partition.parameters(adapted) if layers else {}
    for path, layer in layers.items():
        leaf = (
            f"{path}/{type(layer).weight}".removeprefix("/")
            if isinstance(layer, LoRALayer)
            else path
        )
        if leaf not in floats:
            raise InputError(
                f"{leaf} is quantised and has no gradient, from which init='lora_ga' starts; start on a base "
                "of floating-point numbers, or take init='pissa'"
            )
        found[path] = leaf
    return found


@takes(adapted=MODEL, loss=FUNCTION)
def start_from_gradients(
    adapted: Model, loss: Callable[[Model, Any], Array], batches: Iterable[Any]
) -> Model:
    """Returns a copy whose updates with `init="lora_ga"` start from the mean gradient of their weights.

    Args:
      adapted: with such updates, at their start.
      loss: of (model, batch), a scalar; without dropout.
      batches: some, of the training data; the paper takes 64 to 128 examples in all.

    Raises:
      ValueError: no such update, no batch, or a gradient that is not finite.
    """
    weights = waiting_weights(adapted)
    if not weights:
        raise InputError("no update of this model has init='lora_ga', which starts from gradients")
    _refuse_trained(adapted)
    if isinstance(batches, jax.Array | np.ndarray):
        raise InputError(
            "batches must be several: a list, or another iterable, of what the loss takes"
        )
    copy = nnx.clone(adapted)
    labels = dict.fromkeys(partition.parameters(copy), partition.FROZEN)
    labels |= dict.fromkeys(weights.values(), partition.TRAINABLE)
    structure, chosen, rest = partition.split(copy, labels)
    set_starts(copy, weights, mean_gradient(structure, chosen, rest, loss, batches))
    return copy


def _refuse_trained(adapted: nnx.Module) -> None:
    """Raises ValueError for updates that are not at their start any more: they would be lost."""
    for path, layer in adapted_layers(adapted).items():
        for pair in pairs_of(layer.lora).values():
            if not hasattr(pair, "gamma") or isinstance(pair.a.get_raw_value(), jax.core.Tracer):
                continue
            same = (pair.a[...] == pair.a_start[...]).all() & (
                pair.b[...] == pair.b_start[...]
            ).all()
            if not bool(same):
                raise InputError(
                    f"the update of {path or 'the model'} is trained already, and a new start would undo "
                    "that; start from gradients before training, on method.insert(base, key)"
                )


def mean_gradient(
    structure: partition.Structure[Model],
    chosen: Mapping[str, Any],
    rest: Mapping[str, Any],
    loss: Callable[[Model, Any], Array],
    batches: Iterable[Any],
) -> Gradients:
    """The mean over some batches of the gradient of chosen leaves, float32.

    Args:
      structure: of the model.
      chosen: leaves by path.
      rest: the other leaves.
      loss: of (model, batch), a scalar.
      batches: at least one.

    Raises:
      ValueError: no batch, or a gradient that is not finite.
    """

    def of_batch(chosen: Any, rest: Any, batch: Any) -> Array:
        value = loss(partition.join(structure, chosen, rest), batch)
        if not isinstance(value, jax.Array) or value.shape:
            raise InputError(
                f"the loss must be one number, and it is {getattr(value, 'shape', type(value).__name__)}; "
                "give a function of (model, batch) that returns the mean alone"
            )
        return value

    @jax.jit
    def added(total: Gradients, chosen: Any, rest: Any, batch: Any) -> Gradients:
        found: Gradients = jax.grad(of_batch)(chosen, rest, batch)
        return {path: total[path] + new.astype(jnp.float32) for path, new in found.items()}

    total, count = {p: jnp.zeros_like(leaf, jnp.float32) for p, leaf in chosen.items()}, 0
    for batch in batches:
        total, count = added(total, dict(chosen), dict(rest), batch), count + 1
    if not count:
        raise InputError("no batch to compute the gradient of the weights from (init='lora_ga')")
    if odd := sorted(path for path, leaf in total.items() if not bool(jnp.isfinite(leaf).all())):
        raise InputError(
            f"the gradient of {odd[0]} is not finite, so init='lora_ga' cannot start from it; check the "
            "loss and the data"
        )
    return {path: leaf / count for path, leaf in total.items()}


def set_starts(adapted: nnx.Module, weights: Mapping[str, str], gradients: Gradients) -> None:
    """Sets the factors of waiting updates, and their start, in place.

    Args:
      adapted: with updates that wait.
      weights: paths of their weights, from `waiting_weights`.
      gradients: of these.
    """
    layers = adapted_layers(adapted)
    for path, leaf in weights.items():
        layer = layers[path]
        view = WeightView(layer)
        shape = layer.stack_shape() + layer.view()
        whole = gradients[leaf].reshape(shape)
        for pair, part in pairs_with_weights(layer.lora, view).values():
            if hasattr(pair, "gamma"):
                _set_start(pair, part, part.sliced(whole, view.roles.outputs[0]))


def _set_start(pair: LowRankUpdate, weight: WeightView, gradient: Float[Array, ...]) -> None:
    def start(matrix: Float[Array, "inputs outputs"]) -> tuple[Array, Array]:
        return starts.lora_ga(matrix, pair.rank, pair.gamma)

    def factors(gradient: Float[Array, ...]) -> tuple[Array, Array]:
        a, b = jax.lax.map(start, weight.roles.to_matrices(gradient))
        return a.reshape(pair.a.shape), b.reshape(pair.b.shape)

    a, b = automatically(factors, starts.shardings_of_factors(weight), gradient)
    pair.a[...] = pair.a_start[...] = a
    pair.b[...] = pair.b_start[...] = b
