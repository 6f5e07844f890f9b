"""Dropout as a pure function: its random key is an argument, and without a key nothing is dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lora_jax import threefry

DropoutKey = Key[Array, ""] | None  # None switches dropout off


def dropout(
    x: Float[Array, "*shape"],
    rate: float | Float[Array, ""],
    key: DropoutKey,
    *,
    keeps_mask: bool = False,
) -> Float[Array, "*shape"]:
    """Zeroes values with probability `rate` and divides the others by 1 - rate.

    Two values share one 32-bit random word, so the rate is rounded to a multiple of 1/65536: drawing the
    bits is most of the cost of dropout on a CPU.

    Args:
      x: values; one axis at least.
      rate: probability in [0, 1). It may be an array, so that runs with different rates share one
        compiled program; the result is that of the same rate as a number.
      key: random key. Without one, or with the number 0 as rate, x is returned unchanged.
      keeps_mask: whether the backward pass keeps what was dropped instead of drawing it again; for parts of
        a model that it computes again as a whole.
    """
    if key is None or (isinstance(rate, float | int) and rate == 0):
        return x
    compute = _dropped if keeps_mask else jax.checkpoint(_dropped)
    dropped: Array = compute(x, jnp.asarray(rate, jnp.float32), key)
    return dropped


def _dropped(
    x: Float[Array, "*shape"], share: Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "*shape"]:
    *lead, last = x.shape
    halves = [
        half for word in threefry.words(key, (*lead, -(-last // 4))) for half in _halves(word)
    ]
    threshold = jnp.round(share * 2**16).astype(jnp.uint32)
    kept = jnp.concatenate([half >= threshold for half in halves], axis=-1)[..., :last]
    return jnp.where(kept, x / (1 - share).astype(x.dtype), 0)


def _halves(word: threefry.Words) -> tuple[threefry.Words, threefry.Words]:
    return word & 0xFFFF, word >> 16


def split_key(key: DropoutKey, count: int) -> tuple[DropoutKey, ...]:
    """Keys for `count` parts of a module that drop values independently; None for all without a key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
