"""What llama.cpp's converters make of the models that are read from GGUF files: names, and what they change.

One entry for each `general.architecture`. llama.cpp rotates neighbouring values of a head where
transformers rotates the halves, so that its converter reorders the rows of queries and keys of
architecture llama (`LlamaModel.permute`); those of the others stay. Gemma's norms multiply by 1 + weight,
and the converter adds the 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)")
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_COMMON = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TWO_NORMS = {**_COMMON, "ffn_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    **_COMMON,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

ROPE_FACTORS = "rope_freqs.weight"  # of Llama 3's longer rotary periods; no tensor of transformers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How models of one architecture are written.

    Attributes:
      model_type: transformers' name.
      layer: names of a layer's tensors there, by llama.cpp's.
      constants: values of config.json that the architecture implies.
      permuted: the rows of queries and keys are in another order.
      shifted: norms have a 1 added.
      biases: fields of config.json that say of biases, each by a tensor of the first layer.
      sliding: every layer but each one of so many attends to a window; 0: all attend to everything.
      large: layers of the largest model, whose queries are scaled by its width instead of the head's.
    """

    model_type: str
    layer: Mapping[str, str]
    constants: Mapping[str, Any]
    permuted: bool = False
    shifted: bool = False
    biases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sliding: int = 0
    large: int = 0

    def published(self, name: str) -> str | None:
        """transformers' name of a tensor; None if the architecture has no such tensor."""
        if name in _WHOLE:
            return _WHOLE[name]
        match = _LAYER.fullmatch(name)
        if match is None or match[2] not in self.layer:
            return None
        return f"model.layers.{match[1]}.{self.layer[match[2]]}.{match[3]}"

    def shift(self, name: str) -> float:
        """What the converter added to the values of a tensor."""
        return 1.0 if self.shifted and name.endswith("norm.weight") else 0.0


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        model_type="llama",
        layer=_TWO_NORMS,
        constants={"hidden_act": "silu"},
        permuted=True,
        biases={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
    ),
    "qwen2": Family(
        model_type="qwen2", layer=_TWO_NORMS,
        constants={"hidden_act": "silu", "use_sliding_window": False},
    ),
    "qwen3": Family(
        model_type="qwen3", layer={**_TWO_NORMS, **_HEAD_NORMS},
        constants={"hidden_act": "silu", "use_sliding_window": False},
        biases={"attention_bias": "blk.0.attn_q.bias"},
    ),
    "gemma2": Family(
        model_type="gemma2", layer=_FOUR_NORMS,
        constants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        shifted=True, sliding=2, large=46,
    ),
    "gemma3": Family(
        model_type="gemma3_text", layer={**_FOUR_NORMS, **_HEAD_NORMS},
        constants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        shifted=True, sliding=6, large=62,
    ),
}  # fmt: skip


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in transformers' order, from llama.cpp's.

    Args:
      rows: (heads width, ...), where neighbours are rotated together.
      heads: of queries, or of keys.

    Returns:
      The same rows with the first values of all pairs of a head before the second ones.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in llama.cpp's order, from transformers': the inverse of `halves`."""
    pairs = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
