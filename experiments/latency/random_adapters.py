"""Adapters of random numbers."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from lora_jax import partition
from lora_jax.adapter_files import Adapter
from lora_jax.method import Method

_SPREAD = 0.02  # standard deviation of LoRA's factors


def random_adapter(
    base: nnx.Module, method: Method, seed: int, fingerprint_of_base: str, spread: float = _SPREAD
) -> Adapter:
    """An adapter whose leaves are all random, N(0, spread^2), so that merging it changes the weights."""
    adapted = method.insert(base, jax.random.key(seed))
    labels = method.labels(adapted)
    _, trainable, _ = partition.split(adapted, labels)
    rng = np.random.default_rng(seed)
    values = {
        path: rng.normal(scale=spread, size=leaf.shape).astype(np.float32)
        for path, leaf in sorted(trainable.items())
    }
    return Adapter(method, {path: labels[path] for path in values}, values, fingerprint_of_base, {})
