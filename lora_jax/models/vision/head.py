"""What the classifiers of pictures share: the head, and the check of what they are given."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.errors import InputError


class Head(nnx.Module):
    """The output layer, which is new for a task and computes in float32."""

    def __init__(self, width: int, num_outputs: int, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)  # so small that a fresh head is sure of nothing
        self.output = nnx.Linear(width, num_outputs, kernel_init=normal, rngs=rngs)

    def __call__(self, x: Float[Array, "n width"]) -> Float[Array, "n outputs"]:
        """Logits of pooled states."""
        logits: Array = self.output(x.astype(jnp.float32))
        return logits


def check_pictures(images: Array | np.ndarray, channels: int, size: int | None = None) -> None:
    """Raises InputError if an array is not pictures (n, height, width, channels).

    Args:
      images: what a model is given.
      channels: of each picture.
      size: of its sides, where a model takes no other one.
    """
    sides = "height, width" if size is None else f"{size}, {size}"
    fits = images.ndim == 4 and images.shape[-1] == channels
    if not fits or (size is not None and images.shape[1:3] != (size, size)):
        order = ", with the channels last" if images.shape[1:2] == (channels,) else ""
        raise InputError(
            f"the model takes pictures of shape (n, {sides}, {channels}){order}, got {images.shape}"
        )
