"""The models of plans, by name: encoders, GPT-2 and the Llama families."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from flax import nnx
from ml_collections import ConfigDict

from lora_jax.errors import InputError
from lora_jax.models import deberta_config, encoder, gpt2, hub, llama_sizes
from lora_jax.models.architectures import ARCHITECTURES, AnyConfig
from lora_jax.models.encoder import EncoderConfig

_CLASSES = 2


def _sizes() -> Mapping[str, AnyConfig]:
    return {**encoder.SIZES, **deberta_config.SIZES, **gpt2.SIZES, **llama_sizes.SIZES}


def model_config(config: ConfigDict, base_dtype: str) -> AnyConfig:
    """Sizes and settings of the plan's model.

    Args:
      config: of the plan.
      base_dtype: type of computation.

    Raises:
      ValueError: no such model, or it lacks a setting.
    """
    sizes, name = _sizes(), config.model.size
    if name not in sizes:
        near = difflib.get_close_matches(name.lower()[:100], sizes, 1)
        meant = f". Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown model {name[:100]!r}; known are {sorted(sizes)}{meant}")
    settings = {k: v for k, v in config.model.items() if k != "size"}
    return dataclasses.replace(sizes[name], compute_dtype=base_dtype, **settings)


def heads(config: ConfigDict) -> int:
    """What a mesh axis over heads must divide."""
    return model_config(config, str(config.base_dtype)).heads


def is_classifier(config: ConfigDict) -> bool:
    """Whether the plan's model is an encoder with a task head."""
    return isinstance(_sizes().get(config.model.size), EncoderConfig)


def head_pattern(config: ConfigDict) -> str | None:
    """The head's leaves, where there is one."""
    return hub.HEAD if is_classifier(config) else None


def make(sizes: AnyConfig) -> nnx.Module:
    """The model; under `jax.eval_shape` nothing is allocated."""
    return ARCHITECTURES[sizes.architecture].make(sizes, _CLASSES, nnx.Rngs(0))
