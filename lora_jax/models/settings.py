"""What of a model's configuration changes what it computes, beside its weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_jax.models.architectures import ModelConfig

# Of training, of initial values, or of how the same numbers are computed.
WITHOUT_EFFECT = (
    "hidden_dropout_prob", "pooler_dropout", "attention_probs_dropout_prob", "classifier_dropout",
    "embd_pdrop", "attn_pdrop", "resid_pdrop", "attention_dropout", "initializer_range", "unroll", "remat",
    "compute_dtype", "attention",
)  # fmt: skip


def computing(config: ModelConfig) -> dict[str, Any]:
    """The fields of a parsed configuration on which the outputs of a model in evaluation depend.

    Two config.json that differ in other keys, such as the version of transformers, have the same. An
    adapter was trained with these values, which the fingerprint of its base's weights does not cover.
    """
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    values = {"architecture": config.architecture, **dataclasses.asdict(config)}
    return {name: value for name, value in values.items() if name not in WITHOUT_EFFECT}
