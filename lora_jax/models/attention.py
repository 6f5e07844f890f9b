"""Attention over packed token rows, as encoders and the decoder compute it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lora_jax.dropout import DropoutKey, dropout


def attend(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length heads size"],
    v: Float[Array, "rows length heads size"],
    mask: Bool[Array, "#rows 1 length length"],
    rate: float,
    key: DropoutKey,
) -> Float[Array, "rows length heads size"]:
    """Scaled dot-product attention.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: True where the token on the third axis attends to the token on the fourth.
      rate: dropout rate of the attention weights.
      key: random key of that dropout; None switches it off.
    """
    if key is None or rate == 0:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # heads as a leading batch axis: faster
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    return jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v), 1, 2)
