"""Sizes and settings of decoders of the Llama kind; `llama_json` reads them from config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

from lora_jax.errors import InputError
from lora_jax.models import ranges
from lora_jax.models.attention.attend import Kernel, check_kernel
from lora_jax.models.parts import check_base_format, check_compute_dtype
from lora_jax.models.rotary import Rotary
from lora_jax.models.stack import Remat
from lora_jax.ranges import Flag, Number, OrNone, Range

Activation = Literal["silu", "gelu_pytorch_tanh"]
_CAP = OrNone(of=Number(above=0, most=10_000), none="no cap")

# Of the fields that config.json has under the same names.
RANGES: Mapping[str, Range] = {
    "vocab_size": ranges.ROWS,
    "hidden_size": ranges.WIDTH,
    "intermediate_size": ranges.INNER,
    "num_hidden_layers": ranges.DEPTH,
    "num_attention_heads": ranges.WIDTH,
    "num_key_value_heads": OrNone(of=ranges.WIDTH, none="as many as there are query heads"),
    "head_dim": OrNone(of=ranges.WIDTH, none="hidden_size / num_attention_heads"),
    "max_position_embeddings": ranges.ROWS,
    "rms_norm_eps": ranges.EPSILON,
    "initializer_range": ranges.SPREAD,
    "attention_dropout": ranges.RATE,
    "tie_word_embeddings": Flag(),
    "attention_bias": Flag(),
    "mlp_bias": Flag(),
    "query_pre_attn_scalar": OrNone(of=Number(above=0, most=2**20), none="the size of a head"),
    "attn_logit_softcapping": _CAP,
    "final_logit_softcapping": _CAP,
}


class LayerKind(NamedTuple):
    """What a layer attends to, and how it knows positions.

    Attributes:
      window: tokens that it sees, with the newest; None for all before.
      rotary: its frequencies.
    """

    window: int | None
    rotary: Rotary


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes and settings; names that Hugging Face's config.json has mean the same here.

    Attributes:
      architecture: family, the model_type of config.json.
      num_key_value_heads: heads of keys and values; None: as many as query heads.
      head_dim: size of a head; None: hidden_size / num_attention_heads.
      attention_bias: whether queries, keys and values have biases.
      attention_output_bias: whether the product behind attention has one.
      query_pre_attn_scalar: scores are divided by its square root; None: the size of a head.
      activation: of the gate.
      kinds: of layers.
      layer_kinds: index in `kinds` of every layer; (): all are of the first kind.
      head_norms: queries and keys are normalised, head by head (Qwen 3, Gemma 3).
      post_norms: sublayers have a norm behind them, too (Gemma).
      norm_offset: added to the scale of norms: 1 in Gemma.
      scaled_embeddings: embeddings are multiplied by sqrt(hidden_size) (Gemma).
      unroll, remat: how the stack runs, see `Stack`.
      compute_dtype: of activations and matrix products, whatever type the parameters have.
      base_format: of the matrices when the model is read, see `base_formats`.
      attention: by whom attention is computed, see `attend`.

    Raises:
      InputError: a size or rate is out of its range, or sizes do not fit each other.
    """

    architecture: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    activation: Activation = "silu"
    kinds: tuple[LayerKind, ...] = (LayerKind(None, Rotary()),)
    layer_kinds: tuple[int, ...] = ()
    head_norms: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    scaled_embeddings: bool = False
    unroll: int = 1
    remat: Remat = "none"
    compute_dtype: str = "float32"
    base_format: str = "float"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_base_format(self.base_format)
        ranges.check(self, RANGES)
        check_kernel(self, "attention_dropout")
        heads, shared = self.num_attention_heads, self.shared_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}, and "
                "there is no head_dim"
            )
        if heads % shared:
            raise InputError(
                f"num_attention_heads {heads} is not divisible by num_key_value_heads {shared}"
            )
        if self.head_size % 2:
            raise InputError(f"rotary positions need an even head_dim, got {self.head_size}")
        if self.layer_kinds and len(self.layer_kinds) != self.num_hidden_layers:
            raise InputError(
                f"{len(self.layer_kinds)} kinds of layers for {self.num_hidden_layers} layers"
            )

    @property
    def head_size(self) -> int:
        """Values of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def score_scale(self) -> float | None:
        """Factor of products of queries and keys; None: by the size of a head."""
        scalar = self.query_pre_attn_scalar
        return None if scalar is None else float(scalar) ** -0.5

    @property
    def width(self) -> int:
        """Values of an activation."""
        return self.hidden_size

    @property
    def depth(self) -> int:
        """Number of Transformer layers."""
        return self.num_hidden_layers

    @property
    def heads(self) -> int:
        """Heads of keys and values: what a mesh axis over heads must divide."""
        return self.shared_heads

    @property
    def max_length(self) -> int:
        """Tokens of the longest example."""
        return self.max_position_embeddings
