"""Random weights, made on the device in the type that they have there: no larger copy ever exists."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_BOUND = 0.02 * 3**0.5  # of a uniform distribution with standard deviation 0.02


def _uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.uniform(key, shape, dtype, -_BOUND, _BOUND)


def _codes(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    bits = jax.random.bits(key, shape, jnp.dtype(f"uint{8 * dtype.itemsize}"))
    return jax.lax.bitcast_convert_type(bits, dtype)


@functools.partial(jax.jit, static_argnames=("make", "shape", "dtype"))
def _layer_by_layer(key: Array, make: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """The random bits of a value may take more memory than it: those of a stack are never there at once."""
    if len(shape) < 3:
        return make(key, shape, dtype)
    return jax.lax.map(lambda own: make(own, shape[1:], dtype), jax.random.split(key, shape[0]))


def leaves(shapes: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Arrays of these shapes by path.

    Scales of norms are 1, other floating-point numbers have standard deviation 0.02, and the codes of packed
    weights are any.
    """
    key, made = jax.random.key(seed), {}
    for number, (path, leaf) in enumerate(sorted(shapes.items())):
        own = jax.random.fold_in(key, number)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            made[path] = _layer_by_layer(own, _codes, leaf.shape, jnp.dtype(leaf.dtype))
        elif path.endswith("/scale"):
            made[path] = jnp.ones(leaf.shape, leaf.dtype)
        else:
            made[path] = _layer_by_layer(own, _uniform, leaf.shape, jnp.dtype(leaf.dtype))
    return made
