"""The hash behind JAX's default random numbers, for dropout.

JAX's own for CPUs runs the rounds as a loop over arrays, and `jax.random.bits` folds the two words of a
result into one: four times the processor time of this for the attention weights of a layer (20.5 to 4.9 ms).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_ROUNDS = 20

Words = UInt32[Array, "*shape"]


def words(key: Key[Array, ""], shape: tuple[int, ...]) -> tuple[Words, Words]:
    """Two random words of 32 bits for every element of a shape.

    Args:
      key: random key; with another generator than threefry2x32 the words are those of `jax.random.bits`.
      shape: one axis at least.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        first, second = jax.random.bits(key, (2, *shape), jnp.uint32)
        return first, second
    *lead, _ = shape
    row = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(lead):
        row = row * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, len(lead))
    return threefry2x32(jax.random.key_data(key), row, column)


def threefry2x32(key: UInt32[Array, 2], x: Words, y: Words) -> tuple[Words, Words]:
    """Threefry-2x32 with 20 rounds of a key and pairs of counters (Salmon et al. 2011, section 3.2).

    Args:
      key: two words.
      x: first counters.
      y: second counters.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for number in range(1, _ROUNDS + 1):
        x = x + y
        turn = _ROTATIONS[(number - 1) % len(_ROTATIONS)]
        y = x ^ ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn)))
        injection, rest = divmod(number, 4)
        if rest == 0:
            x = x + keys[injection % 3]
            y = y + keys[(injection + 1) % 3] + np.uint32(injection)
    return x, y
