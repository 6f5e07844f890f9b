"""Products of a layer's inputs with a narrow trained matrix, in the form that suits the device."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jaxtyping import Array, Inexact, Num


def with_factor(
    product: Callable[[Array, Array], Array],
    inputs: Num[Array, ...],
    factor: Inexact[Array, ...],
    *,
    features: int = 0,
    apart: bool = False,
) -> Inexact[Array, ...]:
    """The product of inputs with a factor, in the form that suits the device.

    For CPUs all tokens are the rows of one matrix. The factor's gradient is a sum over them, and where they
    are several axes XLA first transposes what is large, the layer's inputs or the gradient of its outputs,
    with all that is computed on the way. Elsewhere the axes stay, as a mesh may divide several of them.

    For GPUs XLA joins products of the same inputs, up to some thousand tokens, and copies their other
    factors together for that: all of the weight, in every call. A barrier keeps them apart there. The
    backward pass keeps the inputs themselves, not what is behind the barrier.

    Args:
      product: of inputs and factor.
      inputs: of the layer, or the first product.
      factor: A or B.
      features: number of the inputs' last axes that are no tokens; 0 where they are not the last ones.
      apart: whether the layer multiplies the same inputs with its weight.
    """
    tokens = inputs.ndim - features
    rows = features > 0 and tokens > 1 and not any(jax.typeof(inputs).sharding.spec[1:tokens])
    if not rows and not apart:
        return product(inputs, factor)

    def by_rows(x: Array, factor: Array) -> Array:
        shape = x.shape
        flat = product(x.reshape(math.prod(shape[:tokens]), *shape[tokens:]), factor)
        return flat.reshape(*shape[:tokens], *flat.shape[1:])

    def behind_barrier(x: Array, factor: Array) -> Array:
        return product(jax.lax.optimization_barrier(x), factor)

    forms = {"cpu": by_rows} if rows else {}
    if apart:
        forms["cuda"] = behind_barrier

    def in_form(x: Array, factor: Array) -> Array:
        chosen: Array = jax.lax.platform_dependent(x, factor, default=product, **forms)
        return chosen

    result: Array = jax.checkpoint(in_form)(inputs, factor)
    return result
