"""config.json of diffusers' UNet2DConditionModel."""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_jax.models.config_json import Keys
from lora_jax.models.diffusion.unet_config import RANGES, UNetConfig

CLASS = "UNet2DConditionModel"
# Of diffusers' files: who wrote them.
WITHOUT_EFFECT = ("_class_name", "_diffusers_version", "_name_or_path")
_NONE = (
    "num_attention_heads", "reverse_transformer_layers_per_block", "encoder_hid_dim", "encoder_hid_dim_type",
    "class_embed_type", "addition_embed_type", "addition_time_embed_dim", "num_class_embeds",
    "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim",
    "projection_class_embeddings_input_dim", "cross_attention_norm",
)  # fmt: skip
_FALSE = (
    "center_input_sample", "only_cross_attention", "dual_cross_attention", "resnet_skip_time_act",
    "class_embeddings_concat",
)  # fmt: skip

KEYS = Keys(
    ranges=RANGES,
    fixed={
        **dict.fromkeys(_NONE, (None,)),
        **dict.fromkeys(_FALSE, (False,)),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1, 1.0),
        "dropout": (0.0, 0),
        "act_fn": ("silu", "swish"),
        "resnet_time_scale_shift": ("default",),
        "resnet_out_scale_factor": (1.0, 1),
        "time_embedding_type": ("positional",),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "mid_block_only_cross_attention": (None, False),
    },
    without_effect=(
        *WITHOUT_EFFECT,
        "upcast_attention",  # scores and softmax are float32 here in any case
        "addition_embed_type_num_heads",  # of an embedding that is refused
    ),
)


def published(config: UNetConfig) -> dict[str, Any]:
    """What config.json says of a saved model."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k in KEYS.ranges}
    return {"_class_name": CLASS, **fields}
