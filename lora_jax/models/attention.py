"""Attention over packed token rows, as encoders and decoders compute it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lora_jax.dropout import DropoutKey, dropout


@dataclasses.dataclass(frozen=True)
class Scores:
    """How products of queries and keys become scores.

    Attributes:
      scale: factor; None: 1 / sqrt(size of a head).
      cap: scores are cap tanh(score / cap), as Gemma 2 has them; None: as they are.
    """

    scale: float | None = None
    cap: float | None = None

    def of_size(self, size: int) -> float:
        """The factor for heads of a size."""
        return size**-0.5 if self.scale is None else self.scale

    def capped(self, scores: Float[Array, ...]) -> Float[Array, ...]:
        """The scores within the cap."""
        return scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)


PLAIN = Scores()
# By whom scores, softmax and mix are computed: by XLA as three operations, or on GPUs by cuDNN as one that
# never holds the scores.
Kernel = Literal["xla", "cudnn"]
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def attend(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    mask: Bool[Array, "#rows 1 length length"],
    rate: float,
    key: DropoutKey,
    scores: Scores = PLAIN,
    kernel: Kernel = "xla",
) -> Float[Array, "rows length heads size"]:
    """Scaled dot-product attention.

    Args:
      q: queries.
      k: keys; neighbouring query heads share them where there are fewer.
      v: values, one for each key.
      mask: True where the token on the third axis attends to the token on the fourth.
      rate: dropout rate of the attention weights.
      key: random key of that dropout; None switches it off.
      scores: how products of queries and keys become scores.
      kernel: by whom it is computed; "cudnn" takes 16-bit types. With a cap, with dropout, for an odd
        length and for other devices than GPUs it is XLA.
    """
    if scores.cap is None and (key is None or rate == 0):
        return _without_dropout(q, k, v, mask, scores, kernel)
    shared, length, size = k.shape[2], q.shape[1], q.shape[3]
    # Heads as leading batch axes: faster.
    q = jnp.moveaxis(q.reshape(*q.shape[:2], shared, -1, size), 1, 3)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    products = jnp.einsum("bhgqd,bhkd->bhgqk", q, k, preferred_element_type=jnp.float32)
    products = scores.capped(products * scores.of_size(size))
    products = jnp.where(mask[:, :, None], products, jnp.finfo(products.dtype).min)
    weights = dropout(jax.nn.softmax(products, axis=-1), rate, key)
    mixed = jnp.einsum("bhgqk,bhkd->bhgqd", weights.astype(v.dtype), v)
    return jnp.moveaxis(mixed, 3, 1).reshape(len(q), length, -1, size)


Attention = Callable[..., Float[Array, "rows length heads size"]]  # of q, k, v and mask


def kept_apart(
    attention: Attention,
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    mask: Bool[Array, "#rows 1 length length"],
) -> Float[Array, "rows length heads size"]:
    """Attention in which a token that is not finite reaches only those that attend to it.

    A weight of zero does not keep a NaN away: 0 x NaN is NaN. Where the examples of a row are of different
    models (`lora_jax.pool`), that of one must not reach the others.

    Args:
      attention: of q, k, v and mask.
      q: queries.
      k: keys.
      v: values.
      mask: True where the token on the third axis attends to the token on the fourth.
    """
    finite = jnp.isfinite(k).all(axis=(2, 3)) & jnp.isfinite(v).all(axis=(2, 3))
    k, v = (jnp.where(finite[:, :, None, None], x, 0) for x in (k, v))
    reached = jnp.any(mask & ~finite[:, None, None, :], axis=-1)[:, 0, :, None, None]
    return jnp.where(reached, jnp.nan, attention(q, k, v, mask))


def _without_dropout(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    mask: Bool[Array, "#rows 1 length length"],
    scores: Scores,
    kernel: Kernel,
) -> Float[Array, "rows length heads size"]:
    def by(implementation: Kernel) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, scale=scores.scale, implementation=implementation
        )

    # Without JAX's plugin for CUDA there is no program for GPUs, and no cuDNN to ask for its version.
    plugin = any(map(importlib.util.find_spec, _CUDA_PLUGINS))
    if kernel == "xla" or q.shape[1] % 2 or not plugin:
        return by("xla")
    mixed: jax.Array = jax.lax.platform_dependent(
        cuda=lambda: by("cudnn"), default=lambda: by("xla")
    )
    return mixed
