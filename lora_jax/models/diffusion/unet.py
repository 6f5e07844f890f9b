"""The U-Net of Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752, section 3).

It is diffusers' UNet2DConditionModel, and the paths of its parameters are the names there, see `names`. Small
ones for other images, with and without attention, are made with other sizes.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.errors import InputError
from lora_jax.models.diffusion.blocks import DownBlock, MidBlock, UpBlock
from lora_jax.models.diffusion.layers import conv, group_norm, on_devices
from lora_jax.models.diffusion.resnet import TimeEmbedding
from lora_jax.models.diffusion.transformer import Conditions
from lora_jax.models.diffusion.unet_config import UNetConfig


class UNet(nnx.Module):
    """What a noisy image at a time tells of its noise (or of what else it is trained to predict).

    Attributes:
      config: its sizes and settings.
    """

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs):
        first, blocks = config.block_out_channels[0], range(len(config.block_out_channels))
        self.conv_in = conv(config, (None, "embed"), (config.in_channels, first), rngs)
        self.time_embedding = TimeEmbedding(config, rngs)
        self.down_blocks = nnx.List(DownBlock(config, number, rngs) for number in blocks)
        if config.mid_block_type is not None:
            self.mid_block = MidBlock(config, rngs)
        self.up_blocks = nnx.List(UpBlock(config, number, rngs) for number in blocks)
        self.conv_norm_out = group_norm(config, first, config.norm_eps, rngs)
        self.conv_out = conv(config, ("embed", None), (first, config.out_channels), rngs)
        self.config = config

    def __call__(
        self,
        sample: Float[Array | np.ndarray, "batch height width inputs"],
        timesteps: Float[Array | np.ndarray, " batch"] | Int[Array | np.ndarray, " batch"],
        context: Float[Array | np.ndarray, "batch length context"] | None = None,
        context_mask: Bool[Array | np.ndarray, "batch length"] | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        """The prediction for each image, in float32.

        Args:
          sample: noisy images, or latent ones; (batch, height, width, channels).
          timesteps: the time of each.
          context: what each image is of, such as the hidden states of a text. Only U-Nets without attention
            do without.
          context_mask: True for the elements of the context that count; None: all of them.

        Raises:
          InputError: the context is missing, or the channels or the context's width are not the model's.
        """
        self._check(sample, context)
        dtype = jnp.dtype(self.config.compute_dtype)
        time = self.time_embedding(jnp.asarray(timesteps, jnp.float32))
        context = None if context is None else jnp.asarray(context, dtype)
        mask = None if context_mask is None else jnp.asarray(context_mask)
        conditions = Conditions(time, context, mask)
        x = on_devices(self.conv_in(jnp.asarray(sample, dtype)))
        kept = [x]
        for block in self.down_blocks:
            x, more = block(x, conditions)
            kept += more
        if self.config.mid_block_type is not None:
            x = self.mid_block(x, conditions)
        for up in self.up_blocks:
            x = up(x, kept, conditions)
        return self.conv_out(self.conv_norm_out(x)).astype(jnp.float32)

    def _check(self, sample: Array | np.ndarray, context: Array | np.ndarray | None) -> None:
        config = self.config
        if sample.shape[-1] != config.in_channels:
            raise InputError(
                f"samples must be (batch, height, width, {config.in_channels}), channels last; got "
                f"{sample.shape}"
            )
        if context is None and config.attends:
            raise InputError(
                f"a U-Net with attention needs a context, (batch, length, {config.cross_attention_dim}); the "
                "blocks without attention are DownBlock2D, UpBlock2D and UNetMidBlock2D"
            )
        if context is not None and context.shape[-1] != config.cross_attention_dim:
            raise InputError(
                f"the context must be (batch, length, {config.cross_attention_dim}), as cross_attention_dim "
                f"says; got {context.shape}"
            )
