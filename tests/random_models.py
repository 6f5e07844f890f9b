"""Models with random values made in numpy, from shapes alone: initialisers are slow to compile."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax import partition


def from_shapes(make, seed=0, scale=0.3):
    """All variables, one after the other, N(0, scale^2)."""
    model = nnx.eval_shape(make)
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model)):
        values = rng.normal(scale=scale, size=variable.shape)
        variable.set_raw_value(jnp.asarray(values, variable.dtype))
    return model


def with_norms_near_one(make):
    """The parameters in the order of their paths, N(0, 0.2^2), but the scales of norms N(1, 0.2^2)."""
    abstract = nnx.eval_shape(make)
    shapes = partition.parameters(abstract)
    structure, _, _ = partition.split(abstract, dict.fromkeys(shapes, partition.FROZEN))
    rng = np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.normal(path.endswith("scale"), 0.2, shapes[path].shape), jnp.float32)
        for path in sorted(shapes)
    }
    return partition.join(structure, values, {})
