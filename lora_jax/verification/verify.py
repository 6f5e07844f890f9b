"""A self-check of an adapted model on example inputs: does the update do what merging says it does?

A LoRA layer changes the result of a layer's call, and merging changes its weight. They agree only if the
call is all that the model does with the weight. A table that is also read as `embed.embedding[...]`, a
call that scales its result, or a layer that is never called trains without complaint and is wrong.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition, state
from lora_jax.arguments import MODEL, Kind, takes
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import nothing_inserted
from lora_jax.method import Method
from lora_jax.verification.precision import has_low_precision
from lora_jax.verification.program import Call, Comparison
from lora_jax.verification.report import Verification
from lora_jax.verification.trial import concluded

_ADAPTATION = Kind((Method, nnx.Module), "a Method, or the model with it inserted")


@takes(model=MODEL, adaptation=_ADAPTATION)
def verify(
    model: nnx.Module,
    adaptation: Method | nnx.Module,
    *inputs: Any,
    call: Call | None = None,
    key: Key[Array, ""] | None = None,
    **kwargs: Any,
) -> Verification:
    """Checks on example inputs that an adapted model is right; changes neither model.

    * before training its outputs are the base's;
    * random factors change the outputs, and every factor gets a gradient, in every layer of a stack;
    * merged and unmerged give the same outputs with them.

    Both are taken in evaluation mode (`model.eval()`). Weights of lower precision are taken in float32
    where the model allows it: rounding is not what is looked for. Where the method is given, what trains
    and is zero (a new head, a gate) is random, too: its zeros are gone after one step. Costs one program
    of three forward passes and a backward pass, which runs once or twice for every adapted layer, since a
    wrong one among many would drown in their sum.

    Args:
      model: pre-trained.
      adaptation: the method to insert, or the model with it inserted, trained or not.
      *inputs: of the model; few and short examples do.
      call: of (model, *inputs, **kwargs), for what is not the model's `__call__`; its result has
        floating-point arrays.
      key: for the random factors.
      **kwargs: of the model's call.

    Raises:
      ValueError: no adapted layer, a model of shapes without values, or outputs without finite
        floating-point numbers. What is found to be wrong is in the result; `check()` raises it.
    """
    key = jax.random.key(0) if key is None else key
    adapted = adaptation.insert(model, key) if isinstance(adaptation, Method) else adaptation
    layers = adapted_layers(adapted)
    if not layers:
        raise nothing_inserted()
    if any(layer.is_abstract() for layer in layers.values()):
        raise InputError("the model holds shapes without values; verify a model with its weights")
    run = call or (lambda module, *args, **kw: module(*args, **kw))
    fresh = isinstance(adaptation, Method)
    differing = _differing(model, adapted)
    if isinstance(adaptation, Method):
        model, adapted = _without_new_zeros(model, adapted, adaptation, key)

    def concluded_in(in_float32: bool) -> Verification:
        comparison = Comparison(
            model, adapted, run, (inputs, kwargs), key=key, in_float32=in_float32
        )
        return dataclasses.replace(concluded(comparison, fresh), differing=differing)

    # An accelerator's default products of float32 are of lower precision.
    with jax.default_matmul_precision("highest"):
        if not has_low_precision(adapted):
            return concluded_in(in_float32=False)
        try:
            return concluded_in(in_float32=True)
        except TypeError:  # something in the model insists on its types
            return concluded_in(in_float32=False)


def _differing(model: nnx.Module, adapted: nnx.Module) -> tuple[str, ...]:
    """Pre-trained leaves of an adapted model whose values are not the base's."""
    before, after = partition.parameters(model), partition.parameters(adapted)
    return tuple(
        path
        for path, leaf in sorted(before.items())
        if path in after and after[path] is not leaf and not jnp.array_equal(after[path], leaf)
    )


def _without_new_zeros(
    model: nnx.Module, adapted: nnx.Module, method: Method, key: Key[Array, ""]
) -> tuple[nnx.Module, nnx.Module]:
    """Base and adapted model with random values in all pre-trained leaves that train and are zero."""
    before, labels = partition.parameters(model), method.labels(adapted)
    values = {}
    for number, (path, leaf) in enumerate(sorted(before.items())):
        if labels.get(path, partition.FROZEN) != partition.FROZEN and not jnp.any(leaf):
            noise = 0.1 * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)
            values[path] = leaf + noise.astype(leaf.dtype)
    if not values:
        return model, adapted
    base, changed = nnx.clone(model), nnx.clone(adapted)
    for copy in (base, changed):
        state.write(copy, values)
    return base, changed
