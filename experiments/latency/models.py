"""The models that are timed: a decoder in one type, and adapters of random numbers for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lora_jax import partition
from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.method import Method
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.gpt2 import GPT2, GPT2Config

_SPREAD = 0.02  # standard deviation of LoRA's factors


def base_model(config: ConfigDict) -> Decoder:
    """The decoder of a config in its type.

    Raises:
      FileNotFoundError, InputError: it cannot be read, its sizes do not fit one another, or the rows of the
        grid are longer than it takes.
    """
    dtype = str(config.base_dtype)
    if name := config.model.name:
        folder = hub.find(name)
        sizes: Any = hub.read_decoder_config(folder, compute_dtype=dtype)
        _check_lengths(config, sizes.max_length)
        return hub.load_decoder(folder, sizes, dtype)
    named = {key: value for key, value in config.model.items() if key != "name"}
    _check_lengths(config, named["n_positions"])
    model = GPT2(GPT2Config(**named, compute_dtype=dtype), nnx.Rngs(config.seed))
    cast = in_type(model, dtype)
    assert isinstance(cast, Decoder)
    return cast


def _check_lengths(config: ConfigDict, most: int) -> None:
    if (longest := max(config.lengths)) > most:
        raise InputError(
            f"config.lengths has {longest}, and the model takes {most} tokens a row: leave it out, or set "
            "config.model.n_positions"
        )


def in_type(model: nnx.Module, dtype: str) -> nnx.Module:
    """A model with all parameters in one floating-point type."""
    structure, params = partition.all_frozen(model)
    kind = jnp.dtype(dtype)
    return partition.join(structure, {}, {path: leaf.astype(kind) for path, leaf in params.items()})


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
