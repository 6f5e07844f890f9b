"""What the updates share whose factors A and B are computed from other arrays (LoHa, LoKr)."""

from __future__ import annotations

import math
from typing import TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact

from lora_jax.low_rank.kinds import TwoProducts
from lora_jax.low_rank.weights import WeightView

KindOfLayer = TypeVar("KindOfLayer", bound=TwoProducts)


def plain_layer(weight: WeightView, kind: type[KindOfLayer]) -> KindOfLayer | None:
    """The layer of a weight, where it is of a kind and its way through A and B is that of the kind alone.

    Then an update may go another way to the same result. It may not where a class does more in its
    `low_rank_output`.

    Args:
      weight: of the layer.
      kind: such as `DenseKind`.
    """
    layer = weight.layer
    if not isinstance(layer, kind) or layer.stack_shape():
        return None
    return layer if type(layer).low_rank_output is TwoProducts.low_rank_output else None


def typical_size(weight: WeightView) -> Float[Array, ""]:
    """Root mean square of a weight's values; of a weight of zeros 1 / sqrt(inputs)."""
    fan_in = math.prod(weight.roles.sizes(weight.shape)[1])
    size = jnp.sqrt(jnp.mean(weight.values() ** 2))
    return jnp.where(size > 0, size, 1 / math.sqrt(fan_in))


def precise(leaf: nnx.Variable[Array]) -> Inexact[Array, ...]:
    """The values of a leaf in float32, or float64 if they are, for products of several leaves."""
    values = leaf[...]
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def identity(maps: int, size: int) -> Float[Array, "maps size size"]:
    """The factor that changes nothing, for every map."""
    return jnp.broadcast_to(jnp.eye(size, dtype=jnp.float32), (maps, size, size))
