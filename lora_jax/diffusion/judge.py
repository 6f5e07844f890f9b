"""A small convolutional classifier with two outputs, that scores what diffusion models draw."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float


class Judge(nnx.Module):
    """Tells what a picture shows, and in which style.

    Two convolutions of stride 2, as of a small LeNet, and two linear outputs.
    """

    def __init__(
        self, side: int, channels: int, contents: int, styles: int, rngs: nnx.Rngs, width: int = 32
    ):
        """Random values.

        Args:
          side: height and width of pictures, a multiple of 4.
          channels: of pictures.
          contents: number of kinds of content.
          styles: number of styles.
          rngs: of the values.
          width: of the first convolution.
        """
        self.first = nnx.Conv(channels, width, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs)
        features = 2 * width * (side // 4) ** 2
        self.hidden = nnx.Linear(features, 2 * width, rngs=rngs)
        self.content = nnx.Linear(2 * width, contents, rngs=rngs)
        self.style = nnx.Linear(2 * width, styles, rngs=rngs)

    def __call__(
        self, pictures: Float[Array, "n side side channels"]
    ) -> tuple[Float[Array, "n contents"], Float[Array, "n styles"]]:
        """Logits of contents and of styles."""
        x = nnx.relu(self.second(nnx.relu(self.first(pictures))))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.content(x), self.style(x)


def loss(model: Any, batch: dict[str, Array], key: jax.Array | None) -> Float[Array, ""]:
    """Sum of both cross-entropies of a `Judge`; pictures are a little noisy while training (with a `key`)."""
    pictures = batch["pictures"]
    if key is not None:
        pictures = pictures + _NOISE * jax.random.normal(key, pictures.shape)
    content, style = model(pictures)
    of = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(of(content, batch["contents"]) + of(style, batch["styles"]))


_NOISE = 0.1  # standard deviation, so that small faults of samples do not count
