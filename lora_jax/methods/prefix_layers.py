"""The modules that special tokens change: the word embedding, and the blocks of a Transformer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.models.cache import KeysValues
from lora_jax.models.sublayer import Block, Context
from lora_jax.sharding.axes import named
from lora_jax.surgery import Inserted, replaces


class SpecialVectors(Inserted):
    """Trainable vectors of the special tokens.

    Attributes:
      embedding: (*stack, tokens, width).
      first: id of the first special token.
    """

    def __init__(self, embedding: Array, first: int):
        self.embedding = nnx.Param(embedding, **named(None, "width"))
        self.first = first

    def replace(
        self, x: Float[Array, "... width"], tokens: Int[Array, ...]
    ) -> Float[Array, "... width"]:
        """x with the vectors of special tokens in their places."""
        number = tokens - self.first  # of the special token; negative for others
        # Converted after the lookup: the gradient's sums are float32.
        vectors = jnp.take(self.embedding[...], number, axis=0, mode="clip").astype(x.dtype)
        return jnp.where((number >= 0)[..., None], vectors, x)


class WithSpecialTokens(nnx.Embed):
    """An embedding whose ids go on behind the vocabulary; `attend` keeps to the vocabulary."""

    special: SpecialVectors

    def __call__(
        self, inputs: Int[Array, ...], *args: Any, **kwargs: Any
    ) -> Float[Array, "... features"]:
        """Embeds ids below and from `num_embeddings` on."""
        x = super().__call__(jnp.minimum(inputs, self.num_embeddings - 1), *args, **kwargs)
        return self.special.replace(x, inputs)


class TolerantEmbed(nnx.Embed):
    """An embedding that takes special tokens; what it gives for them is replaced later."""

    def __call__(
        self, inputs: Int[Array, ...], *args: Any, **kwargs: Any
    ) -> Float[Array, "... features"]:
        """Embeds ids; those behind the vocabulary get some row."""
        return super().__call__(jnp.minimum(inputs, self.num_embeddings - 1), *args, **kwargs)


class Replacing(Block):
    """Mixin: a block whose inputs at special tokens are trainable vectors."""

    special: SpecialVectors

    def __call__(self, x: Array, context: Context, *, key: Array | None = None) -> Array:
        """Runs the block with the vectors of special tokens at its input."""
        return super().__call__(self.special.replace(x, context.tokens), context, key=key)

    def prefill(self, x: Array, context: Context) -> tuple[Array, KeysValues]:
        """Runs the block on prompts. Generated tokens are never special: `decode_step` stays as it is."""
        return super().prefill(self.special.replace(x, context.tokens), context)


for _changed in (WithSpecialTokens, TolerantEmbed):
    replaces(nnx.Embed, _changed)
