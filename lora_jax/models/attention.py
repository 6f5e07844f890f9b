"""What encoders and the decoder share: packed token rows, and attention inside their segments."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from lora_jax.dropout import dropout


class Inputs(NamedTuple):
    """A batch of token rows, each holding one or more segments (examples).

    Attributes:
      tokens: token ids.
      segments: 0 for padding; tokens of one row with equal number attend to each other.
      positions: position inside the segment, from 0.
      types: token types (0 for the first sentence, 1 for the second); a decoder does not read them.
    """

    tokens: Int[Array | np.ndarray, "rows length"]
    segments: Int[Array | np.ndarray, "rows length"]
    positions: Int[Array | np.ndarray, "rows length"]
    types: Int[Array | np.ndarray, "rows length"]


def attend(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length heads size"],
    v: Float[Array, "rows length heads size"],
    mask: Bool[Array, "rows 1 length length"],
    rate: float,
    key: Key[Array, ""] | None,
) -> Float[Array, "rows length heads size"]:
    """Attention where the mask is true; dropout on the probabilities if there is a key."""
    if key is None or rate == 0:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # heads as a leading batch axis: faster
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    return jnp.swapaxes(jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v), 1, 2)
