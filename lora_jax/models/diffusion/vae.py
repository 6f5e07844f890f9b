"""The autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.1): AutoencoderKL."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from jaxtyping import Key as Keys

from lora_jax.errors import InputError
from lora_jax.models.diffusion.layers import conv
from lora_jax.models.diffusion.vae_config import VAEConfig
from lora_jax.models.diffusion.vae_layers import Decoder, Encoder

Pixels = Float[Array | np.ndarray, "batch height width channels"]
Latents = Float[Array | np.ndarray, "batch rows columns latent"]
_LOG_VARIANCES = (-30.0, 20.0)  # what they are kept between


class AutoencoderKL(nnx.Module):
    """Images as latent images, of which each is a normal distribution, and back.

    Attributes:
      config: its sizes and settings.
    """

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        latent = config.latent_channels
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.quant_conv = conv(config, (None, None), (2 * latent, 2 * latent), rngs, window=1)
        self.post_quant_conv = conv(config, (None, None), (latent, latent), rngs, window=1)
        self.config = config

    def encode(
        self, images: Pixels
    ) -> tuple[
        Float[Array, "batch rows columns latent"], Float[Array, "batch rows columns latent"]
    ]:
        """Mean and log variance of each image's latent image, in float32.

        Args:
          images: of values from -1 to 1; (batch, height, width, channels). Height and width are multiples
            of `config.factor`.

        Raises:
          InputError: the sizes are others.
        """
        factor = self.config.factor
        if images.shape[-1] != self.config.in_channels or any(
            n % factor for n in images.shape[1:3]
        ):
            raise InputError(
                f"images must be (batch, height, width, {self.config.in_channels}), with height and width "
                f"multiples of {factor}; got {images.shape}"
            )
        x = jnp.asarray(images, jnp.dtype(self.config.compute_dtype))
        moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCES)

    def decode(self, z: Latents) -> Float[Array, "batch height width channels"]:
        """The images of latent images as `encode` has them, see `to_images` for those of a U-Net.

        Args:
          z: (batch, height, width, latent channels).

        Returns:
          Images of values about from -1 to 1, in float32.

        Raises:
          InputError: they have another number of channels.
        """
        if z.shape[-1] != self.config.latent_channels:
            raise InputError(
                f"latent images must be (batch, height, width, {self.config.latent_channels}), channels "
                f"last; got {z.shape}"
            )
        inputs = jnp.asarray(z, jnp.dtype(self.config.compute_dtype))
        return self.decoder(self.post_quant_conv(inputs)).astype(jnp.float32)

    def to_latents(
        self, images: Pixels, key: Keys[Array, ""] | None = None
    ) -> Float[Array, "batch rows columns latent"]:
        """What a U-Net reads of images: latent images times `scaling_factor`.

        Args:
          images: as `encode` takes them.
          key: to draw the latent images with; None: their means.
        """
        mean, log_variance = self.encode(images)
        if key is not None:
            mean += jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        latents: Array = self.config.scaling_factor * mean
        return latents

    def to_images(self, latents: Latents) -> Float[Array, "batch height width channels"]:
        """The images of what a U-Net gives, see `decode`."""
        return self.decode(latents / self.config.scaling_factor)
