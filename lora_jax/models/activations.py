"""Activations of encoders and their heads, by the names of config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Literal["gelu", "tanh", "relu"]


@jax.checkpoint  # the backward pass keeps x only
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU by the error function, as in BERT; `jax.nn.gelu` uses the slower erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = {
    "gelu": gelu, "tanh": jnp.tanh, "relu": jax.nn.relu,
}  # fmt: skip
