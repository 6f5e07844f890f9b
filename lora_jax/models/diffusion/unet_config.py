"""Sizes and settings of the U-Net of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from lora_jax import ranges
from lora_jax.errors import InputError
from lora_jax.models.attention.attend import Kernel, check_kernel
from lora_jax.models.parts import check_compute_dtype
from lora_jax.models.ranges import DEPTH, EPSILON, INNER, WIDTH, check
from lora_jax.models.stack import Remat
from lora_jax.ranges import Flag, OneOf, OrNone, Range, Several, Whole

CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"
CROSS_MID, MID = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
_CROSS = frozenset({CROSS_DOWN, CROSS_UP, CROSS_MID})


@dataclasses.dataclass(frozen=True)
class OneOrEach:
    """A whole number for all blocks, or one for each of them."""

    of: Range = WIDTH

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        return self.of.accepts(value) or Several(of=self.of, different=False).accepts(value)

    def plain(self, value: Any) -> Any:
        """See `Range`."""
        if isinstance(value, tuple | list):
            return tuple(self.of.plain(item) for item in value)
        return self.of.plain(value)

    def __str__(self) -> str:
        return f"{self.of}, or a list with one for each block"


# Of the fields that config.json has, see `UNetConfig`.
RANGES: Mapping[str, Range] = {
    "sample_size": WIDTH,
    "in_channels": WIDTH,
    "out_channels": WIDTH,
    "flip_sin_to_cos": Flag(),
    "freq_shift": Whole(least=0, most=1),
    "down_block_types": Several(of=OneOf((CROSS_DOWN, DOWN)), different=False),
    "mid_block_type": OrNone(of=OneOf((CROSS_MID, MID)), none="no block between"),
    "up_block_types": Several(of=OneOf((CROSS_UP, UP)), different=False),
    "block_out_channels": Several(of=WIDTH, different=False),
    "layers_per_block": DEPTH,
    "transformer_layers_per_block": DEPTH,
    "norm_num_groups": WIDTH,
    "norm_eps": EPSILON,
    "cross_attention_dim": INNER,
    "attention_head_dim": OneOrEach(),
    "use_linear_projection": Flag(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes and settings of a U-Net; names and defaults are those of diffusers' UNet2DConditionModel.

    `sample_size` is the side of the samples it was trained on, which changes nothing of what it computes.
    `attention_head_dim` is the number of attention heads, of all blocks or of each one on the way down, and
    not their size: diffusers keeps the wrong name for the files that have it. `use_linear_projection` has
    linear layers around a transformer (Stable Diffusion 2) in place of 1 x 1 convolutions (1.x). Blocks
    whose type does not begin with "CrossAttn" have no attention.

    `remat` says what of every ResNet block and transformer the backward pass computes again: nothing
    ("none"), all ("full"), or all but products of matrices ("dots"). `compute_dtype` is the type of
    activations and products, whatever type the parameters have; `attention` says by whom attention among
    pixels is computed, see `attend`.

    Raises:
      ValueError: a size is out of its range, or sizes do not fit one another; the message names them.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)
    mid_block_type: str | None = CROSS_MID
    up_block_types: tuple[str, ...] = (UP, CROSS_UP, CROSS_UP, CROSS_UP)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    transformer_layers_per_block: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    remat: Remat = "none"
    compute_dtype: str = "float32"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_kernel(self, "dropout")
        ranges.check("remat", self.remat, OneOf(get_args(Remat)))
        check(self, RANGES)
        for name in ("down_block_types", "up_block_types", "block_out_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.attention_head_dim, list):
            object.__setattr__(self, "attention_head_dim", tuple(self.attention_head_dim))
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types", "heads"):
            if (count := len(getattr(self, name))) != blocks:
                name = "attention_head_dim" if name == "heads" else name
                raise InputError(
                    f"{name} has {count} values, and block_out_channels has {blocks}: there must be one for "
                    "each block"
                )
        ups = self.up_block_types[::-1]
        for number, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise InputError(
                    f"norm_num_groups {self.norm_num_groups} does not divide {channels}, one of "
                    "block_out_channels"
                )
            types = {self.down_block_types[number], ups[number]}
            if number == blocks - 1:
                types.add(str(self.mid_block_type))
            if types & _CROSS and channels % self.heads[number]:
                raise InputError(
                    f"attention_head_dim {self.heads[number]}, which is a number of heads, does not divide "
                    f"{channels} of block_out_channels"
                )
        if self.block_out_channels[0] < 4:  # the embedding of time divides by half of it less one
            raise InputError(
                f"the first of block_out_channels must be at least 4, got {self.block_out_channels[0]}"
            )

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads of each block on the way down."""
        given = self.attention_head_dim
        if isinstance(given, int):
            return (given,) * len(self.block_out_channels)
        return given

    @property
    def time_width(self) -> int:
        """Width of the embedding of time."""
        return 4 * self.block_out_channels[0]

    @property
    def attends(self) -> bool:
        """Whether a block has attention, and so reads the context."""
        types = (*self.down_block_types, self.mid_block_type, *self.up_block_types)
        return bool(_CROSS.intersection(types))


# Of the folders that were published under these names.
SIZES: Mapping[str, UNetConfig] = {
    "stable-diffusion-v1-5": UNetConfig(cross_attention_dim=768),
    "stable-diffusion-2-1": UNetConfig(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    ),
}
