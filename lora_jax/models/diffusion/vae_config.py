"""Sizes and settings of the autoencoder of Stable Diffusion (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_jax.errors import InputError
from lora_jax.models.config_json import Keys
from lora_jax.models.diffusion.unet_json import WITHOUT_EFFECT
from lora_jax.models.parts import check_compute_dtype
from lora_jax.models.ranges import DEPTH, WIDTH, check
from lora_jax.ranges import Flag, Number, OneOf, Range, Several

CLASS = "AutoencoderKL"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

# Of the fields that config.json has, see `VAEConfig`.
RANGES: Mapping[str, Range] = {
    "sample_size": WIDTH,
    "in_channels": WIDTH,
    "out_channels": WIDTH,
    "latent_channels": WIDTH,
    "down_block_types": Several(of=OneOf((_DOWN,)), different=False),
    "up_block_types": Several(of=OneOf((_UP,)), different=False),
    "block_out_channels": Several(of=WIDTH, different=False),
    "layers_per_block": DEPTH,
    "norm_num_groups": WIDTH,
    "scaling_factor": Number(above=0),
    "mid_block_add_attention": Flag(),
}

KEYS = Keys(
    ranges=RANGES,
    fixed={
        "act_fn": ("silu", "swish"),
        "shift_factor": (None,),
        "latents_mean": (None,),
        "latents_std": (None,),
        "use_quant_conv": (True,),
        "use_post_quant_conv": (True,),
    },
    without_effect=(
        *WITHOUT_EFFECT,
        "force_upcast",  # of pipelines of diffusers: here `compute_dtype` says it
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes and settings of an autoencoder; names and defaults are those of diffusers' AutoencoderKL.

    Latent images have a height and width of 1 / `factor` of the image's. What encoding gives is multiplied by
    `scaling_factor` for the U-Net. `sample_size` changes nothing of what it computes. `compute_dtype` is
    the type of activations and products, whatever type the parameters have.

    Raises:
      ValueError: a size is out of its range, or sizes do not fit one another; the message names them.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    down_block_types: tuple[str, ...] = (_DOWN,)
    up_block_types: tuple[str, ...] = (_UP,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check(self, RANGES)
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types", "block_out_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if (count := len(getattr(self, name))) != blocks:
                raise InputError(
                    f"{name} has {count} values, and block_out_channels has {blocks}: there must be one for "
                    "each block"
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise InputError(
                    f"norm_num_groups {self.norm_num_groups} does not divide {channels}, one of "
                    "block_out_channels"
                )

    @property
    def factor(self) -> int:
        """Height of an image over that of its latent image."""
        return int(2 ** (len(self.block_out_channels) - 1))


def published(config: VAEConfig) -> dict[str, Any]:
    """What config.json says of a saved model."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k in KEYS.ranges}
    return {"_class_name": CLASS, **fields}


# Of the folders that were published under these names.
_V1 = VAEConfig(
    sample_size=512,
    down_block_types=(_DOWN,) * 4,
    up_block_types=(_UP,) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
)
SIZES: Mapping[str, VAEConfig] = {
    "stable-diffusion-v1-5": _V1,
    "stable-diffusion-2-1": dataclasses.replace(_V1, sample_size=768),
}
