"""What the layers of encoders and decoders share: the residual around a sublayer, and the block."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.sharding.axes import constrain


class Context(NamedTuple):
    """What a block is told about the batch besides its activations.

    Attributes:
      mask: which tokens attend to which.
      tokens: token ids of the rows.
    """

    mask: Bool[Array, "rows 1 length length"]
    tokens: Int[Array, "rows length"]


class Sublayer(nnx.Module):
    """Attention or feed-forward with the residual around it.

    `residual` is where bottleneck adapters go (`methods.bottleneck_layers`): a module of your own that
    subclasses this and calls `self.residual(x, out)` can have them too.

    Attributes:
      norm: the LayerNorm before or after the sublayer.
    """

    norm: nnx.LayerNorm

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Joins the sublayer's input and its output (dropout done)."""
        raise NotImplementedError


class PreNorm(Sublayer):
    """A sublayer whose LayerNorm comes first (GPT-2)."""

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """x + out."""
        return x + out


class PostNorm(Sublayer):
    """A sublayer whose LayerNorm comes last (BERT, RoBERTa)."""

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """LayerNorm(x + out)."""
        return self.norm(x + out)


class Block(nnx.Module):
    """One Transformer layer."""

    def __init__(self, attention: Sublayer, feed_forward: Sublayer):
        self.attention: Any = attention
        self.feed_forward: Any = feed_forward

    def __call__(
        self, x: Float[Array, "rows length width"], context: Context, *, key: Array | None = None
    ) -> Float[Array, "rows length width"]:
        """Runs the layer; `key` switches dropout on."""
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        x = constrain(x, "batch", None, "width")
        x = constrain(self.attention(x, context.mask, keys[:2]), "batch", None, "width")
        return constrain(self.feed_forward(x, keys[2]), "batch", None, "width")

    def cached(self, x: Array, own: Any, context: Any) -> tuple[Array, Any]:
        """Runs the layer on prompts (`own` None, a `Context`) or one token per beam (a `Cache`).

        Returns its output and the keys and values.
        """
        mixed, kept = (
            self.attention.prefill(x, context.mask)
            if own is None
            else self.attention.step(x, own, context)
        )
        return constrain(self.feed_forward(mixed, None), "batch", None, "width"), kept
