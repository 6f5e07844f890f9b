"""Random weights, made on the device in the type that they have there: no larger copy ever exists."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_BOUND = 0.02 * 3**0.5  # of a uniform distribution with standard deviation 0.02


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _uniform(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
    return jax.random.uniform(key, shape, jnp.dtype(dtype), -_BOUND, _BOUND)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _codes(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
    bits = jax.random.bits(key, shape, jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}"))
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype))


def leaves(shapes: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Arrays of these shapes by path.

    Scales of norms are 1, other floating-point numbers have standard deviation 0.02, and the codes of packed
    weights are any.
    """
    key, made = jax.random.key(seed), {}
    for number, (path, leaf) in enumerate(sorted(shapes.items())):
        own = jax.random.fold_in(key, number)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            made[path] = _codes(own, leaf.shape, str(leaf.dtype))
        elif path.endswith("/scale"):
            made[path] = jnp.ones(leaf.shape, leaf.dtype)
        else:
            made[path] = _uniform(own, leaf.shape, str(leaf.dtype))
    return made
