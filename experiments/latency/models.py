"""The models that are timed: a decoder in one type."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from lora_jax import partition
from lora_jax.errors import InputError
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.gpt2 import GPT2, GPT2Config


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
