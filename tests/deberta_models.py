"""Small random DeBERTas of every kind, as transformers makes them, and batches for both."""

from __future__ import annotations

import encoder_tensors
import jax
import numpy as np
import torch
import transformers

from lora_jax.data.packing import TokenisedExamples
from lora_jax.models import hub

BASE = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": 40, "type_vocab_size": 0,
    "relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p",
    "num_labels": 3, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
# The settings of published models in small, and each setting by itself.
VARIANTS = {
    "v2-xxlarge": {
        "num_hidden_layers": 3, "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 8,
    },
    "v3": {
        "share_att_key": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm",
        "pooler_hidden_size": 24, "type_vocab_size": 0,
    },
    "no buckets, own keys": {"pos_att_type": ["c2p", "p2c"]},
    "few positions": {"max_relative_positions": 6, "share_att_key": True},
    "only c2p": {"pos_att_type": ["c2p"], "position_buckets": 10, "norm_rel_ebd": "none"},
    "only p2c": {"pos_att_type": "p2c", "position_buckets": 12, "norm_rel_ebd": "layer_norm"},
    "only p2c, shared": {"pos_att_type": "p2c", "share_att_key": True, "position_buckets": 6},
    "nothing in scores": {"pos_att_type": [], "norm_rel_ebd": "layer_norm", "position_buckets": 8},
    "absolute": {
        "relative_attention": False, "position_biased_input": True, "type_vocab_size": 2,
        "pooler_hidden_act": "tanh",
    },
    "narrow table": {
        "embedding_size": 10, "position_biased_input": True, "type_vocab_size": 2, "position_buckets": 9,
        "share_att_key": True, "conv_kernel_size": 5, "num_labels": 1, "pooler_hidden_act": "relu",
    },
}  # fmt: skip

# A published kind in few words, for models whose sizes are given.
PUBLISHED_KIND = {
    "relative_attention": True, "position_buckets": 4, "pos_att_type": "p2c|c2p", "conv_kernel_size": 3,
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip

# transformers' names below the prefix, and our paths; written out again, so that it checks the layout.
_LAYER, _BLOCK = r"encoder\.layer\.\d+\.", "encoder/layers/block/"
NAMES = (
    (r"embeddings\.(word|position|token_type)_embeddings", r"encoder/embeddings/\1"),
    (r"embeddings\.embed_proj", "encoder/embeddings/projection"),
    (r"embeddings\.LayerNorm", "encoder/embeddings/norm"),
    (r"encoder\.rel_embeddings", "encoder/relative"),
    (r"encoder\.LayerNorm", "encoder/norm"),
    (r"encoder\.conv\.conv", "encoder/convolution/conv"),
    (r"encoder\.conv\.LayerNorm", "encoder/convolution/norm"),
    (_LAYER + r"attention\.self\.(query|key|value)_proj", _BLOCK + r"attention/\1"),
    (_LAYER + r"attention\.self\.pos_(query|key)_proj", _BLOCK + r"attention/position_\1"),
    (_LAYER + r"attention\.output\.dense", _BLOCK + "attention/output"),
    (_LAYER + r"attention\.output\.LayerNorm", _BLOCK + "attention/norm"),
    (_LAYER + r"intermediate\.dense", _BLOCK + "feed_forward/up"),
    (_LAYER + r"output\.dense", _BLOCK + "feed_forward/down"),
    (_LAYER + r"output\.LayerNorm", _BLOCK + "feed_forward/norm"),
    (r"pooler\.dense", "head/dense"),
    (r"classifier", "head/output"),
)


def to_ours(named: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors by transformers' names as arrays by our paths."""
    return encoder_tensors.to_ours(named, NAMES)


def reference(variant: str, seed: int = 0, **changes):
    """transformers' classifier with random values everywhere, large enough that attention is not flat."""
    config = transformers.DebertaV2Config(**{**BASE, **VARIANTS[variant], **changes})
    model = transformers.DebertaV2ForSequenceClassification(config).eval()
    encoder_tensors.randomise(model, seed)
    return model


def load(folder, **overrides):
    """Our model of a folder, with the head in it, and its configuration."""
    config = hub.read_config(folder, **overrides)
    with_head = hub.load_classifier(
        folder, config, _outputs(folder), jax.random.key(0), head="published"
    )
    return with_head, config


def _outputs(folder) -> int:
    return transformers.AutoConfig.from_pretrained(folder).num_labels


def batches(lengths, types: int, seed: int = 0, shape=(2, 40)):
    """A padded batch for PyTorch, and the same examples in shared rows for us."""
    random = np.random.default_rng(seed)
    ids = [random.integers(1, 50, n).astype(np.int32) for n in lengths]
    kinds = [
        np.where(np.arange(n) < n // 2, 0, max(types - 1, 0)).astype(np.int32) for n in lengths
    ]
    padded = np.zeros((3, len(ids), max(lengths)), np.int64)
    for row, (tokens, own) in enumerate(zip(ids, kinds, strict=True)):
        padded[:, row, : len(tokens)] = tokens, np.ones_like(tokens), own
    names = ("input_ids", "attention_mask", "token_type_ids")
    theirs = {name: torch.tensor(values) for name, values in zip(names, padded, strict=True)}
    examples = TokenisedExamples(ids, kinds, np.zeros(len(ids), np.int32))
    batch = examples.pack(range(len(ids)), shape, len(ids))
    return theirs, (batch.inputs, batch.rows, batch.columns)
