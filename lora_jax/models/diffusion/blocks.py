"""The blocks of a U-Net: on the way down, between, and on the way up, with and without attention."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.models.diffusion.layers import Image, checkpointed
from lora_jax.models.diffusion.resnet import Downsample, ResnetBlock, Upsample
from lora_jax.models.diffusion.transformer import Conditions, Transformer
from lora_jax.models.diffusion.unet_config import CROSS_DOWN, CROSS_MID, CROSS_UP, UNetConfig


def _resnet(config: UNetConfig, sizes: tuple[int, int], rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(config, sizes, rngs, epsilon=config.norm_eps, time_width=config.time_width)


class Block(nnx.Module):
    """What the blocks have in common.

    Attributes:
      resnets: ResNet blocks.
      attentions: one transformer behind each of them; there is no such name in a block without attention.
    """

    def __init__(
        self, config: UNetConfig, resnets: list[ResnetBlock], attentions: list[Transformer]
    ):
        self.resnets = nnx.List(resnets)
        if attentions:
            self.attentions = nnx.List(attentions)
        self.attends, self.remat = bool(attentions), config.remat

    def layer(self, number: int, x: Image, conditions: Conditions) -> Array:
        """A ResNet block, and the transformer behind it."""
        x = checkpointed(self.remat, self.resnets[number], x, conditions.time)
        if self.attends:
            x = checkpointed(self.remat, self.attentions[number], x, conditions)
        return x


class DownBlock(Block):
    """Layers at one size, and a step to half of it but for the last block."""

    def __init__(self, config: UNetConfig, number: int, rngs: nnx.Rngs):
        channels = config.block_out_channels
        width, before = channels[number], channels[max(number - 1, 0)]
        layers = range(config.layers_per_block)
        resnets = [_resnet(config, (width if i else before, width), rngs) for i in layers]
        attentions = []
        if config.down_block_types[number] == CROSS_DOWN:
            heads = config.heads[number]
            attentions = [Transformer(config, width, heads, rngs) for _ in layers]
        super().__init__(config, resnets, attentions)
        self.is_last = number == len(channels) - 1
        if not self.is_last:
            self.downsamplers = nnx.List([Downsample(config, width, rngs)])

    def __call__(self, x: Image, conditions: Conditions) -> tuple[Array, list[Array]]:
        """The image, and what the way up reads again: of each layer, and the smaller one."""
        kept = []
        for number in range(len(self.resnets)):
            x = self.layer(number, x, conditions)
            kept.append(x)
        if not self.is_last:
            x = self.downsamplers[0](x)
            kept.append(x)
        return x, kept


class MidBlock(Block):
    """A ResNet block at the smallest size; with attention a transformer and another one behind it."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs):
        width = config.block_out_channels[-1]
        sizes = width, width
        resnets, attentions = [_resnet(config, sizes, rngs)], []
        if config.mid_block_type == CROSS_MID:
            attentions.append(Transformer(config, width, config.heads[-1], rngs))
            resnets.append(_resnet(config, sizes, rngs))
        super().__init__(config, resnets, attentions)

    def __call__(self, x: Image, conditions: Conditions) -> Image:
        """The image, changed."""
        x = self.layer(0, x, conditions)
        if self.attends:
            x = checkpointed(self.remat, self.resnets[1], x, conditions.time)
        return x


class UpBlock(Block):
    """Layers that read again what the way down had, and a step to the double size but for the last block."""

    def __init__(self, config: UNetConfig, number: int, rngs: nnx.Rngs):
        channels = config.block_out_channels[::-1]
        width, before = channels[number], channels[max(number - 1, 0)]
        self.is_last = number == len(channels) - 1
        below = (
            width if self.is_last else channels[number + 1]
        )  # of the last image that is read again
        layers = config.layers_per_block + 1
        inputs = [
            (width if i else before) + (below if i == layers - 1 else width) for i in range(layers)
        ]
        resnets = [_resnet(config, (size, width), rngs) for size in inputs]
        attentions = []
        if config.up_block_types[number] == CROSS_UP:
            heads = config.heads[::-1][number]
            attentions = [Transformer(config, width, heads, rngs) for _ in resnets]
        super().__init__(config, resnets, attentions)
        if not self.is_last:
            self.upsamplers = nnx.List([Upsample(config, width, rngs)])

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        kept: list[Array],
        conditions: Conditions,
    ) -> Float[Array, "batch rows columns outputs"]:
        """The image, changed.

        Args:
          x: the image.
          kept: what the way down had; this block takes its share from the end, and the size of its result
            from what remains.
          conditions: what else is read.
        """
        for number in range(len(self.resnets)):
            x = self.layer(number, jnp.concatenate([x, kept.pop()], axis=-1), conditions)
        if not self.is_last:
            height, width = kept[-1].shape[1:3]
            x = self.upsamplers[0](x, (height, width))
        return x
