"""Merging: W + scale * A B in one weight, for inference without extra cost (paper, section 4.1).

A merged model has the original layer classes again, so it is the base model's program with other
numbers. There is no "unmerge": subtracting the delta does not restore the bits of W, in bfloat16 by
far. Keep the adapted model (its base arrays are shared, not copied) and drop the merged one. To
switch tasks, load another adapter onto the base and merge that.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from lora_jax import layers


def merge(model: nnx.Module) -> nnx.Module:
    """Returns a copy in which every adapted layer is its original class with the delta added.

    The sum is taken in float32 and cast once to the weight's type.

    Raises:
      ValueError: the model has no adapted layer.
    """
    merged = _copy_of_adapted(model)
    for layer in layers.adapted_layers(merged).values():
        weight = getattr(layer, layer.weight)
        total = weight[...].astype(jnp.float32) + layers.delta(layer)
        weight[...] = total.astype(weight.dtype)
        layers.unadapt(layer)
    return merged


def strip(model: nnx.Module) -> nnx.Module:
    """Returns the base model: every adapted layer without its child, of its original class.

    Raises:
      ValueError: the model has no adapted layer.
    """
    stripped = _copy_of_adapted(model)
    for layer in layers.adapted_layers(stripped).values():
        layers.unadapt(layer)
    return stripped


def _copy_of_adapted(model: nnx.Module) -> nnx.Module:
    copy = nnx.clone(model)
    if not layers.adapted_layers(copy):
        raise ValueError("the model has no adapted layer; insert a method such as lora(...) first")
    return copy
