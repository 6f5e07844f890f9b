"""Dropout as a pure function: its random key is an argument, and without a key nothing is dropped."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

DropoutKey = Key[Array, ""] | None  # None switches dropout off
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry 2x32, by rounds of four
_PARITY = 0x1BD11BDA  # of its key schedule


def dropout(
    x: Float[Array, "*shape"], rate: float | Float[Array, ""], key: DropoutKey
) -> Float[Array, "*shape"]:
    """Zeroes values with probability `rate` and divides the others by 1 - rate.

    A value takes 16 random bits, so the rate is rounded to a multiple of 1/65536. On a CPU drawing the
    bits is most of the cost of dropout, see `random_words`.

    Args:
      x: values; one axis at least.
      rate: probability in [0, 1). It may be an array, so that runs with different rates share one
        compiled program; the result is that of the same rate as a number.
      key: random key. Without one, or with the number 0 as rate, x is returned unchanged.
    """
    if key is None or (isinstance(rate, float | int) and rate == 0):
        return x
    dropped: Array = _dropped(x, jnp.asarray(rate, jnp.float32), key)
    return dropped


@jax.checkpoint  # the backward pass draws the mask again instead of keeping it
def _dropped(
    x: Float[Array, "*shape"], share: Float[Array, ""], key: Key[Array, ""]
) -> Float[Array, "*shape"]:
    return jnp.where(_kept(x.shape, share, key), x / (1 - share).astype(x.dtype), 0)


def _kept(
    shape: tuple[int, ...], share: Float[Array, ""], key: Key[Array, ""]
) -> Bool[Array, "*shape"]:
    """Which values stay; each quarter of the last axis has 16 of the 64 bits of a pair of words."""
    *lead, last = shape
    first, second = random_words(key, (*lead, -(-last // 4)))
    threshold = jnp.round(share * 2**16).astype(jnp.uint32)
    quarters = (first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16)
    return jnp.concatenate([bits >= threshold for bits in quarters], axis=-1)[..., :last]


def random_words(
    key: Key[Array, ""], shape: tuple[int, ...]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Two arrays of random words, from which an element depends on the key and its flat index alone.

    For JAX's default keys these are the two words that Threefry 2x32 (Salmon et al. 2011, 20 rounds) gives
    for (0, index), as in `jax.random.bits`, which keeps but one of them (their exclusive or) and on CPUs runs
    the rounds as a loop over arrays in memory. Here they are one fused operation.

    Args:
      key: of any implementation; others than Threefry draw with `jax.random.bits`.
      shape: of both arrays.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        *lead, last = shape
        words = jax.random.bits(key, (*lead, 2 * last), jnp.uint32)
        return words[..., :last], words[..., last:]
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):  # so the devices that share an axis out need no others' part
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _threefry(jax.random.key_data(key), jnp.zeros_like(index), index)


def _threefry(
    key: UInt32[Array, " 2"], first: UInt32[Array, "*shape"], second: UInt32[Array, "*shape"]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Threefry 2x32 with 20 rounds, of every pair of words."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    first, second = first + keys[0], second + keys[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            first = first + second
            second = first ^ ((second << by) | (second >> (32 - by)))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def split_key(key: DropoutKey, count: int) -> tuple[DropoutKey, ...]:
    """Keys for `count` parts of a module that drop values independently; None for all without a key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
