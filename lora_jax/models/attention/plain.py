"""Attention as XLA computes it: all scores of some rows at a time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from jaxtyping import Key as Keys

from lora_jax.dropout import dropout
from lora_jax.models.attention.relative import Relative
from lora_jax.models.attention.scores import Scores
from lora_jax.models.attention.spans import Spans
from lora_jax.sharding.axes import ways

# Scores, in float32, that a device holds at a time; the backward pass holds about four arrays like them.
# More rows are computed one part after the other, each still large enough to fill a device.
_SCORES_BYTES = 32 * 2**20


def attend(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
    scores: Scores,
    rate: float = 0.0,
    key: Keys[Array, ""] | None = None,
    relative: Relative | None = None,
) -> Float[Array, "rows length heads size"]:
    """Scaled dot-product attention; the backward pass keeps q, k and v, and computes the weights again.

    Args:
      q: queries.
      k: keys.
      v: values.
      spans: which tokens attend to which.
      scores: how products of queries and keys become scores.
      rate: dropout rate of the attention weights.
      key: random key of that dropout; None switches it off. Every row has its own, so what is dropped
        does not depend on the parts that rows are computed in.
      relative: embeddings of relative positions, whose products join those of queries and keys.
    """
    keys = None if key is None else jax.random.split(key, len(q))
    compute = jax.checkpoint(functools.partial(_of_rows, scores=scores, rate=rate))
    spans = jax.tree.map(lambda x: jnp.broadcast_to(x, q.shape[:2]), spans)
    parts = _parts(q.shape, 1 if relative is None else 1 + relative.arrays)
    if parts == 1:
        result: Array = compute(q, k, v, spans, keys, relative)
        return result
    # A part has rows of every device: the axis that is split over devices stays the longer one.
    divided = lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)  # noqa: E731

    def whole(relative: Relative | None, *operands: Array | Spans | None) -> Array:
        mixed = jax.lax.map(lambda part: compute(*part, relative), jax.tree.map(divided, operands))
        joined: Array = jnp.swapaxes(mixed, 0, 1).reshape(q.shape)
        return joined

    result = jax.checkpoint(whole)(relative, q, k, v, spans, keys)
    return result


def _parts(shape: tuple[int, ...], arrays: int) -> int:
    """Number of equal parts of the rows whose scores are computed one after the other.

    Args:
      shape: of the queries, on all devices: rows, length, heads, size.
      arrays: as large as the scores that there are of each part.
    """
    rows, length, heads, _ = shape
    over = ways("batch")
    # Rows of a device, which parts divide.
    own = max(rows // over, 1) if rows % over == 0 else 1
    held = -(-rows // over) * -(-heads // ways("heads")) * length**2 * 4 * arrays
    return next((n for n in range(1, own + 1) if own % n == 0 and held <= n * _SCORES_BYTES), own)


def _of_rows(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
    keys: Keys[Array, " rows"] | None,
    relative: Relative | None,
    scores: Scores,
    rate: float,
) -> Float[Array, "rows length heads size"]:
    mask = spans.mask()
    if scores.cap is None and keys is None and relative is None:
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], scale=scores.scale, implementation="xla"
        )
    (rows, length, heads, size), shared = q.shape, k.shape[2]
    # Heads as leading batch axes: faster.
    q = jnp.moveaxis(q.reshape(rows, length, shared, heads // shared, size), 1, 3)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    products = jnp.einsum("bhgqd,bhkd->bhgqk", q, k, preferred_element_type=jnp.float32)
    if relative is not None:  # every query head has its own key then
        products += jnp.expand_dims(relative.products(q[:, :, 0], k), 2)
    products = scores.capped(products * scores.of_size(size))
    products = jnp.where(mask[:, None, None], products, jnp.finfo(products.dtype).min)
    weights = _softmax(products)
    if keys is not None:
        weights = jax.vmap(lambda row, key: dropout(row, rate, key, keeps_mask=True))(weights, keys)
    mixed = jnp.einsum("bhgqk,bhkd->bhgqd", weights.astype(v.dtype), v)
    return jnp.moveaxis(mixed, 3, 1).reshape(rows, length, heads, size)


@jax.custom_jvp
def _softmax(scores: Float[Array, "*lead keys"]) -> Float[Array, "*lead keys"]:
    return jax.nn.softmax(scores, axis=-1)


@_softmax.defjvp
def _softmax_jvp(
    scores: tuple[Float[Array, "*lead keys"]], changes: tuple[Float[Array, "*lead keys"]]
) -> tuple[Float[Array, "*lead keys"], Float[Array, "*lead keys"]]:
    """From the weights alone: JAX's is by its division, which takes longer on CPUs."""
    (change,), weights = changes, _softmax(*scores)
    return weights, weights * (change - (weights * change).sum(axis=-1, keepdims=True))
