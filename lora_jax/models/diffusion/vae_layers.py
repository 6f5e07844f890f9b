"""Encoder and decoder of the autoencoder of Stable Diffusion."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.spans import Spans
from lora_jax.models.diffusion.layers import Image, conv, dense, group_norm, on_devices
from lora_jax.models.diffusion.resnet import Downsample, ResnetBlock, Upsample
from lora_jax.models.diffusion.vae_config import VAEConfig

_EPSILON = 1e-6  # of every norm


class PixelAttention(nnx.Module):
    """Attention with one head among the pixels of an image, and a shortcut around it."""

    def __init__(self, config: VAEConfig, channels: int, rngs: nnx.Rngs):
        sizes = channels, channels
        self.group_norm = group_norm(config, channels, _EPSILON, rngs, silu=False)
        self.to_q = dense(config, ("embed", None), sizes, rngs)
        self.to_k = dense(config, ("embed", None), sizes, rngs)
        self.to_v = dense(config, ("embed", None), sizes, rngs)
        self.to_out = dense(config, (None, "embed"), sizes, rngs)

    def __call__(self, x: Image) -> Image:
        """The image, changed."""
        y = self.group_norm(x)
        tokens = y.reshape(len(y), -1, y.shape[-1])
        q, k, v = (f(tokens)[:, :, None] for f in (self.to_q, self.to_k, self.to_v))
        every = jnp.zeros((1, tokens.shape[1]), jnp.int32)
        # By XLA: a head is as wide as the image has channels, which is more than kernels hold.
        mixed = attend(q, k, v, Spans(every, every + tokens.shape[1]), kernel="xla")
        return on_devices(x + self.to_out(mixed[:, :, 0]).reshape(x.shape))


class MidBlock(nnx.Module):
    """Two ResNet blocks, and attention between them."""

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        width = config.block_out_channels[-1]
        self.resnets = nnx.List(_resnet(config, (width, width), rngs) for _ in range(2))
        if config.mid_block_add_attention:
            self.attentions = nnx.List([PixelAttention(config, width, rngs)])
        self.attends = config.mid_block_add_attention

    def __call__(self, x: Image) -> Image:
        """The image, changed."""
        x = self.resnets[0](x)
        if self.attends:
            x = self.attentions[0](x)
        changed: Array = self.resnets[1](x)
        return changed


class Level(nnx.Module):
    """ResNet blocks at one size, and perhaps a step to another one."""

    def __init__(
        self, config: VAEConfig, sizes: tuple[int, int], rngs: nnx.Rngs, *, layers: int, step: str
    ):
        inputs, outputs = sizes
        resnets = [
            _resnet(config, (inputs if i == 0 else outputs, outputs), rngs) for i in range(layers)
        ]
        self.resnets = nnx.List(resnets)
        if step == "down":
            self.downsamplers = nnx.List([Downsample(config, outputs, rngs, behind=True)])
        if step == "up":
            self.upsamplers = nnx.List([Upsample(config, outputs, rngs)])
        self.step = step

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch rows columns outputs"]:
        """The image, changed."""
        for resnet in self.resnets:
            x = resnet(x)
        if self.step == "down":
            x = self.downsamplers[0](x)
        if self.step == "up":
            x = self.upsamplers[0](x)
        return x


def _resnet(config: VAEConfig, sizes: tuple[int, int], rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(config, sizes, rngs, epsilon=_EPSILON)


class Encoder(nnx.Module):
    """From an image to what mean and variance of its latent image are computed of."""

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        widths = config.block_out_channels
        self.conv_in = conv(config, (None, "embed"), (config.in_channels, widths[0]), rngs)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.down_blocks = nnx.List(
            Level(
                config, sizes, rngs, layers=config.layers_per_block,
                step="" if number == len(pairs) - 1 else "down",
            )
            for number, sizes in enumerate(pairs)
        )  # fmt: skip
        self.mid_block = MidBlock(config, rngs)
        self.conv_norm_out = group_norm(config, widths[-1], _EPSILON, rngs)
        self.conv_out = conv(
            config, ("embed", None), (widths[-1], 2 * config.latent_channels), rngs
        )

    def __call__(self, x: Image) -> Float[Array, "batch rows columns moments"]:
        """What the 1 x 1 convolution behind it reads."""
        x = on_devices(self.conv_in(x))
        for block in self.down_blocks:
            x = block(x)
        moments: Array = self.conv_out(self.conv_norm_out(self.mid_block(x)))
        return moments


class Decoder(nnx.Module):
    """From a latent image to an image."""

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        widths = config.block_out_channels[::-1]
        self.conv_in = conv(config, (None, "embed"), (config.latent_channels, widths[0]), rngs)
        self.mid_block = MidBlock(config, rngs)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.up_blocks = nnx.List(
            Level(
                config, sizes, rngs, layers=config.layers_per_block + 1,
                step="" if number == len(pairs) - 1 else "up",
            )
            for number, sizes in enumerate(pairs)
        )  # fmt: skip
        self.conv_norm_out = group_norm(config, widths[-1], _EPSILON, rngs)
        self.conv_out = conv(config, ("embed", None), (widths[-1], config.out_channels), rngs)

    def __call__(self, z: Image) -> Float[Array, "batch rows columns outputs"]:
        """The image."""
        x = self.mid_block(on_devices(self.conv_in(z)))
        for block in self.up_blocks:
            x = block(x)
        image: Array = self.conv_out(self.conv_norm_out(x))
        return image
