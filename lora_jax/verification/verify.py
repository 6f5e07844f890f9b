"""A self-check of an adapted model on example inputs: does the update do what merging says it does?

A LoRA layer changes the result of a layer's call, and merging changes its weight. They agree only if the
call is all that the model does with the weight. A table that is also read as `embed.embedding[...]`, a
call that scales its result, or a layer that is never called trains without complaint and is wrong.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import nothing_inserted
from lora_jax.method import Method
from lora_jax.verification.program import Call, Comparison, has_low_precision
from lora_jax.verification.report import Verification
from lora_jax.verification.trial import concluded


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

    Weights of lower precision are taken in float32 where the model allows it: rounding is not what is
    looked for. Costs one program of three forward passes and a backward pass, run a few times; if merging
    fails, or something computes in lower precision, once or more for every adapted layer.

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
        raise ValueError("the model holds shapes without values; verify a model with its weights")
    run = call or (lambda module, *args, **kw: module(*args, **kw))
    fresh = isinstance(adaptation, Method)

    def concluded_in(in_float32: bool) -> Verification:
        comparison = Comparison(
            model, adapted, run, (inputs, kwargs), key=key, in_float32=in_float32
        )
        return concluded(comparison, fresh)

    # An accelerator's default products of float32 are of lower precision.
    with jax.default_matmul_precision("highest"):
        if not has_low_precision(adapted):
            return concluded_in(in_float32=False)
        try:
            return concluded_in(in_float32=True)
        except TypeError:  # something in the model insists on its types
            return concluded_in(in_float32=False)
