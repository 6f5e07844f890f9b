"""Dropout as a pure function: its random key is an argument, and without a key nothing is dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

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

    The rate is rounded to a multiple of 2^-24, with keys of other generators than JAX's default one of 2^-16,
    and is at most the largest multiple below 1.

    Args:
      x: values; one axis at least.
      rate: probability in [0, 1). It may be an array, so that runs with different rates share one
        compiled program; the result is that of the same rate as a number.
      key: random key. Without one, or with the number 0 as rate, x is returned unchanged.
      keeps_mask: whether the backward pass keeps what was dropped instead of drawing it again; for parts of
        a model that it computes again as a whole.
    """
    if (key := dropping(key, rate)) is None:
        return x
    compute = _dropped if keeps_mask else jax.checkpoint(_dropped)
    dropped: Array = compute(x, jnp.asarray(rate, jnp.float32), key)
    return dropped


def dropping(key: DropoutKey, rate: float | Float[Array, ""]) -> DropoutKey:
    """The key, or None where nothing is dropped: without a key, or with the number 0 as rate."""
    return None if isinstance(rate, float | int) and rate == 0 else key


def _dropped(
    x: Float[Array, "*shape"], share: Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "*shape"]:
    words, levels = _words(x.shape, key)
    threshold = jnp.minimum(jnp.round(share * levels), levels - 1)
    # The mask comes first: the gradient of what is dropped is 0, also where the other factor overflows.
    kept = jnp.where(words >= threshold.astype(jnp.uint32), x, 0)
    wide = kept.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / (1 - threshold / levels)).astype(x.dtype)


def _words(shape: tuple[int, ...], key: Key[Array, ""]) -> tuple[UInt32[Array, "*shape"], float]:
    """Random numbers, and their number of levels."""
    if jax.random.key_impl(key) == "threefry2x32":
        return threefry.words(key, shape) >> 8, 2.0**24
    # Other generators' words are held as arrays: two values share one.
    *lead, last = shape
    words = jax.random.bits(key, (*lead, -(-last // 2)), jnp.uint32)
    return jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :last], 2.0**16


def split_key(key: DropoutKey, count: int) -> tuple[DropoutKey, ...]:
    """Keys for `count` parts of a module that drop values independently; None for all without a key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
