"""Random adapters for pools, without training: every leaf that a method trains, at random."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax
from experiments.latency.random_adapters import random_adapter
from lora_jax import partition
from lora_jax.adapter_files import Adapter
from lora_jax.adapters import base_parameters, fingerprint


def adapter(base, method, seed, scale=0.3):
    """An adapter of a base whose leaves are N(0, scale^2)."""
    of_base = fingerprint(base_parameters(base, method.head))
    return random_adapter(base, method, seed, of_base, scale)


def with_nan(adapter):
    """The same adapter with a NaN in every leaf, as no file may hold it."""
    values = {path: np.array(value) for path, value in adapter.values.items()}
    for value in values.values():
        value.flat[0] = np.nan
    return Adapter(adapter.method, adapter.groups, values, adapter.base, {})


def alone(base, adapter):
    """The base with one adapter, as everything but the pool has it."""
    return lora_jax.attach(base, adapter)


def call(function, model, *args):
    """A function of a model as one program."""
    structure, params = partition.all_frozen(model)
    return jax.jit(lambda p, *a: function(partition.join(structure, {}, p), *a))(params, *args)


class TwoLayers(nnx.Module):
    """A small model whose rows are independent."""

    def __init__(self, outputs=3):
        self.first = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(6, outputs, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))
