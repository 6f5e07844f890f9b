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
from lora_jax.insertions.special_tokens import TolerantEmbed
from lora_jax.surgery import Inserted


def merge(model: nnx.Module) -> nnx.Module:
    """Returns a copy in which every adapted layer is its original class with the delta added.

    The sum is taken in float32 and cast once to the weight's type. Bottleneck adapters and special
    tokens have no merged form and stay.

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
    """Returns the base model: what methods inserted taken out, every layer of its original class.

    A stack that was cut for single layers stays cut.

    Raises:
      ValueError: nothing is inserted.
    """
    stripped = nnx.clone(model)
    found = False
    for _, module in list(nnx.iter_modules(stripped)):
        names = [name for name, child in vars(module).items() if isinstance(child, Inserted)]
        if isinstance(module, Inserted) or not (names or isinstance(module, TolerantEmbed)):
            continue
        found = True
        if isinstance(module, layers.Adapted):
            layers.unadapt(module)
            continue
        for name in names:
            delattr(module, name)
        object.__setattr__(module, "__class__", type(module).__bases__[-1])
    if not found:
        raise _nothing_inserted()
    return stripped


def _copy_of_adapted(model: nnx.Module) -> nnx.Module:
    copy = nnx.clone(model)
    if not layers.adapted_layers(copy):
        raise _nothing_inserted()
    return copy


def _nothing_inserted() -> ValueError:
    return ValueError("the model has no adapted layer; insert a method such as lora(...) first")
