"""Sizes and settings of CLIP's text encoder, and its config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from lora_jax import ranges
from lora_jax.errors import InputError
from lora_jax.models.attention.attend import Kernel, check_kernel
from lora_jax.models.config_json import FIXED, WITHOUT_EFFECT, Keys
from lora_jax.models.parts import check_compute_dtype
from lora_jax.models.ranges import DEPTH, EPSILON, INNER, ROWS, SPREAD, WIDTH, check
from lora_jax.models.stack import Remat
from lora_jax.ranges import OneOf, Range

CLASS, MODEL_TYPE = "CLIPTextModel", "clip_text_model"
Activation = Literal["quick_gelu", "gelu"]

# Of the fields that config.json has, see `CLIPTextConfig`.
RANGES: Mapping[str, Range] = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": WIDTH,
    "max_position_embeddings": ROWS,
    "hidden_act": OneOf(get_args(Activation)),
    "layer_norm_eps": EPSILON,
    "initializer_range": SPREAD,
}

KEYS = Keys(
    ranges=RANGES,
    fixed={**FIXED, "attention_dropout": (0.0, 0), "dropout": (0.0, 0)},
    without_effect=(
        *WITHOUT_EFFECT,
        "projection_dim",  # of a layer behind this model
        "initializer_factor",
        "tie_word_embeddings", "is_decoder", "cross_attention_hidden_size",  # it has no output embedding
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes and settings of a text encoder; names and defaults are those of transformers' CLIPTextConfig.

    Stable Diffusion 2 reads the last layer but one, and its config.json says that there are 23 layers and
    not 24. `remat` says what of every layer the backward pass computes again, see `UNetConfig`;
    `compute_dtype` is the type of activations and products, `attention` says by whom attention is computed.

    Raises:
      ValueError: a size is out of its range, or the heads do not divide the width.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    remat: Remat = "none"
    compute_dtype: str = "float32"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_kernel(self, "dropout")
        ranges.check("remat", self.remat, OneOf(get_args(Remat)))
        check(self, RANGES)
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )


def published(config: CLIPTextConfig) -> dict[str, Any]:
    """What config.json says of a saved model."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k in KEYS.ranges}
    return {"model_type": MODEL_TYPE, "architectures": [CLASS], **fields}


# Of the folders that were published under these names.
SIZES: Mapping[str, CLIPTextConfig] = {
    "stable-diffusion-v1-5": CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12
    ),
    "stable-diffusion-2-1": CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
    ),
}
