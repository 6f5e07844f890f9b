"""Merging: the update becomes part of the weight, for inference without extra cost (paper, section 4.1).

A merged model has the original layer classes again, so it is the base model's program with other
numbers. There is no "unmerge": subtracting the update does not restore the bits of W, in bfloat16 by
far. Keep the adapted model (its base arrays are shared, not copied) and drop the merged one. To
switch tasks, load another adapter onto the base and merge that.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Inexact

from lora_jax import surgery
from lora_jax.arguments import MODEL, Model, takes
from lora_jax.checks import floating
from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.layers import AdaptedLayer, adapted_layers
from lora_jax.low_rank.pairs import pairs_of
from lora_jax.low_rank.weights import WeightView


@takes(model=MODEL)
def merge(model: Model, dtype: DTypeLike | None = None) -> Model:
    """Returns a copy in which every adapted layer is its original class with the update merged in.

    The merged weight is computed in float32 and cast once to the weight's type. A quantised layer
    becomes one of floating-point numbers, in the type that its weight had before it was packed:
    packing the sum would be another rounding (`quantise` packs the result). Trained rows of tokens take
    their places in the table. A stack of layers that was cut is one stack again, unless its parts differ:
    something that has no merged form stays in one (bottleneck adapters, special tokens, added biases), or
    layers of one are quantised that an update made floating-point numbers in another (`dequantise` puts
    these together).

    Args:
      model: adapted.
      dtype: of the merged weights; None for the type of each.

    Raises:
      ValueError: there is nothing to merge, or the type of a weight, or `dtype`, cannot hold the result.
    """
    dtype = floating("dtype", dtype)
    merged = nnx.clone(model)
    layers = adapted_layers(merged)
    for path, layer in layers.items():
        stored = layer.weight_dtype()
        total = merged_values(layer, path)
        add_to_bias(layer, path)
        layer.replace_weight(cast(total, stored if dtype is None else dtype, path))
    absorbed = surgery.absorb(merged, dtype)
    if not surgery.undivide(merged) and not absorbed and not layers:
        raise nothing_inserted()
    return merged


def cast(values: Inexact[Array, ...], dtype: DTypeLike, path: str) -> Inexact[Array, ...]:
    """Merged values in the type of a weight.

    Args:
      values: in float32.
      dtype: of the weight.
      path: of the layer, for messages.

    Raises:
      InputError: they are too large for it; under a transformation of JAX, which has no values, nothing is
        raised.
    """
    result = values.astype(dtype)
    known = not isinstance(result, jax.core.Tracer)
    if known and bool(jnp.isfinite(values).all()) and not bool(jnp.isfinite(result).all()):
        raise InputError(
            f"{path or 'the weight'} has merged values up to {float(jnp.abs(values).max()):g}, which "
            f"{jnp.dtype(dtype)} cannot hold; merge into another type: merge(model, jnp.float32)"
        )
    return result


def is_mergeable(model: nnx.Module) -> bool:
    """Whether `merge` would change something: updates, rows of tokens, or a stack that was cut."""
    kinds = (surgery.Absorbable, surgery.Divided)
    modules = (module for _, module in nnx.iter_modules(model))
    return bool(adapted_layers(model)) or any(isinstance(module, kinds) for module in modules)


def merged_values(layer: AdaptedLayer, path: str) -> Inexact[Array, ...]:
    """The weight of an adapted layer with its update, float32, in the shape of the weight.

    Args:
      layer: with an update.
      path: of the layer, for messages.

    Raises:
      ValueError: the update is switched off or for lookups only, or the weight is of integers.
    """
    _refuse_lookups(path, layer)
    check_enabled(layer, path, "merging")
    stored = layer.weight_dtype()
    if not jnp.issubdtype(stored, jnp.floating):
        raise InputError(
            f"the weight of {path or type(layer).__name__} is stored as {stored}, which "
            "cannot hold the merged values; keep the model adapted, or merge into a copy of the "
            "base whose weights are floating-point numbers"
        )
    return layer.lora.merged(WeightView(layer)).reshape(layer.weight_shape())


def check_enabled(layer: AdaptedLayer, path: str, what: str) -> None:
    """Raises InputError if the update of a layer is switched off; `what` is about to be done with it."""
    if not layer.lora.enabled:
        raise InputError(
            f"the update of {path or type(layer).__name__} is switched off; switch it on before "
            f"{what} (lora_jax.enable), or take the base with lora_jax.strip"
        )


def _refuse_lookups(path: str, layer: AdaptedLayer) -> None:
    """The output layer would take the merged table, too."""
    if any(pair.lookup_only for pair in pairs_of(layer.lora).values()):
        raise InputError(
            f"the update of {path} is for lookups only (lookup_only), and its table is the output layer too: "
            "no one table is both. Keep the model adapted"
        )


def add_to_bias(layer: AdaptedLayer, path: str) -> None:
    """Adds what the update adds to the layer's bias, if it does (a bias of B, IA3), in place.

    Args:
      layer: with an update.
      path: of the layer, for messages.

    Raises:
      ValueError: the layer has no bias.
    """
    delta = layer.lora.bias_delta(WeightView(layer))
    if delta is None:
        return
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, nnx.Variable):
        raise InputError(
            f"the update of {path or type(layer).__name__} has a bias (b_bias, or IA3's share of one), "
            "and the layer has none that could take it in; keep the model adapted"
        )
    total = bias[...].astype(jnp.float32) + _bias_as_stored(layer, delta, bias.shape)
    bias[...] = total.astype(bias.dtype)


def _bias_as_stored(
    layer: AdaptedLayer, values: Float[Array, ...], shape: Shape
) -> Float[Array, ...]:
    """Values (*stack, *batch, *outputs) in the order of a layer's bias, which an einsum's result decides."""
    stack = layer.stack_shape()
    one = shape[len(stack) :]
    numbers = np.arange(math.prod(one)).reshape(one)
    with jax.ensure_compile_time_eval():
        order = np.asarray(layer.bias_in_order_of_roles(jnp.asarray(numbers), layer.view()))
    if np.array_equal(order.reshape(-1), numbers.reshape(-1)):
        return values.reshape(shape)
    return values.reshape(*stack, -1)[..., np.argsort(order.reshape(-1))].reshape(shape)


@takes(model=MODEL)
def strip(model: Model) -> Model:
    """Returns the base model: what methods inserted taken out, every layer of its original class.

    A stack that was cut for single layers is one stack again; what was trained or moved of the base itself
    (biases, statistics) stays as it is.

    Raises:
      ValueError: nothing is inserted.
    """
    stripped = nnx.clone(model)
    changed = False
    for _, module in list(nnx.iter_modules(stripped)):
        if isinstance(module, surgery.Inserted):
            continue
        for name, child in list(vars(module).items()):
            if isinstance(child, surgery.Inserted):
                delattr(module, name)
        while surgery.is_changed(module):
            surgery.restore(module)
            changed = True
    if not surgery.undivide(stripped) and not changed:
        raise nothing_inserted()
    return stripped


def nothing_inserted() -> InputError:
    """The error for a model that no method was inserted into."""
    return InputError("the model has no adapted layer; insert a method such as lora(...) first")
