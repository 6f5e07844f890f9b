"""Blocks of convolutions: ResNet blocks that read a time, steps to half and double the size, and the time."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.models.diffusion.layers import (
    SAME,
    Image,
    Settings,
    conv,
    dense,
    group_norm,
    on_devices,
)
from lora_jax.models.diffusion.unet_config import UNetConfig

_PERIOD = 10_000  # of the slowest wave, over 2 pi


def waves(
    timesteps: Float[Array, " batch"], width: int, *, cosine_first: bool, shift: int
) -> Float[Array, "batch width"]:
    """Sines and cosines of a time, as in Vaswani et al. 2017 (arXiv:1706.03762, section 3.5).

    Args:
      timesteps: need not be whole.
      width: number of values; where it is odd the last one is 0.
      cosine_first: whether the cosines come before the sines (`flip_sin_to_cos`).
      shift: taken from the number of waves that the frequencies are spread over (`freq_shift`).
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(_PERIOD) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.sin(angles), jnp.cos(angles)]
    joined = jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)
    return jnp.pad(joined, ((0, 0), (0, width % 2)))


class TimeEmbedding(nnx.Module):
    """Two layers that embed the waves of a time."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs):
        width = config.time_width
        self.linear_1 = dense(config, (None, "embed"), (config.block_out_channels[0], width), rngs)
        self.linear_2 = dense(config, ("embed", None), (width, width), rngs)
        self.config = config

    def __call__(self, timesteps: Float[Array, " batch"]) -> Float[Array, "batch time"]:
        """The embedding of each time."""
        inputs = waves(
            timesteps, self.config.block_out_channels[0],
            cosine_first=self.config.flip_sin_to_cos, shift=self.config.freq_shift,
        )  # fmt: skip
        embedded: Array = self.linear_2(jax.nn.silu(self.linear_1(inputs)))
        return embedded


class ResnetBlock(nnx.Module):
    """Two convolutions, each behind a GroupNorm with SiLU, and a shortcut around them.

    Attributes:
      time_emb_proj: adds the time to every pixel between them; there is none in an autoencoder.
      conv_shortcut: a 1 x 1 convolution in the shortcut, where the channels change in number.
    """

    def __init__(
        self,
        settings: Settings,
        sizes: tuple[int, int],
        rngs: nnx.Rngs,
        *,
        epsilon: float,
        time_width: int = 0,
    ):
        inputs, outputs = sizes
        self.norm1 = group_norm(settings, inputs, epsilon, rngs)
        self.conv1 = conv(settings, ("embed", "mlp"), sizes, rngs)
        if time_width:
            self.time_emb_proj = dense(settings, ("embed", "mlp"), (time_width, outputs), rngs)
        self.norm2 = group_norm(settings, outputs, epsilon, rngs, axis="mlp")
        self.conv2 = conv(settings, ("mlp", "embed"), (outputs, outputs), rngs)
        if inputs != outputs:
            self.conv_shortcut = conv(settings, ("embed", None), sizes, rngs, window=1)
        self.reads_time, self.has_shortcut = bool(time_width), inputs != outputs

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        time: Float[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch height width outputs"]:
        """The image, changed; `time` is the embedding of each image's time."""
        y = self.conv1(self.norm1(x))
        if self.reads_time:
            assert time is not None
            y = y + self.time_emb_proj(jax.nn.silu(time))[:, None, None]
        y = self.conv2(self.norm2(y))
        return on_devices((self.conv_shortcut(x) if self.has_shortcut else x) + y)


class Downsample(nnx.Module):
    """Half the height and width, by a convolution with stride 2.

    The autoencoder pads only behind the last row and column (`behind`).
    """

    def __init__(self, settings: Settings, channels: int, rngs: nnx.Rngs, *, behind: bool = False):
        padding = ((0, 1), (0, 1)) if behind else SAME
        sizes = channels, channels
        self.conv = conv(settings, ("embed", None), sizes, rngs, stride=2, padding=padding)

    def __call__(self, x: Image) -> Float[Array, "batch rows columns channels"]:
        """The smaller image."""
        smaller: Array = on_devices(self.conv(x))
        return smaller


class Upsample(nnx.Module):
    """Another height and width, about the double, by repeating pixels; then a convolution."""

    def __init__(self, settings: Settings, channels: int, rngs: nnx.Rngs):
        self.conv = conv(settings, ("embed", None), (channels, channels), rngs)

    def __call__(
        self, x: Image, size: tuple[int, int] | None = None
    ) -> Float[Array, "batch rows columns channels"]:
        """The larger image.

        Args:
          x: the image.
          size: height and width that it shall have; None: the double.
        """
        for axis, wanted in zip((1, 2), size or (2 * x.shape[1], 2 * x.shape[2]), strict=True):
            if wanted == 2 * x.shape[axis]:
                x = jnp.repeat(x, 2, axis=axis)
            else:  # of a size that could not be halved: the nearest pixel, as PyTorch chooses it
                x = jnp.take(x, jnp.arange(wanted) * x.shape[axis] // wanted, axis=axis)
        larger: Array = on_devices(self.conv(x))
        return larger
