"""The parts of a Transformer layer: sublayers with the residual around them, and the block of two."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lora_jax.dropout import DropoutKey, split_key
from lora_jax.models.attention.attend import Attention, kept_apart
from lora_jax.models.attention.spans import Spans
from lora_jax.models.cache import Cache, KeysValues, LayerCache
from lora_jax.models.rotary import Rotation
from lora_jax.sharding.axes import constrain


class Beside(NamedTuple):
    """What joins the output of a model's first block, computed from its input.

    Attributes:
      states: of every token.
      norm: of the sum.
      first: whether a block is the first one; for a whole stack, of every kind of its blocks.
    """

    states: Float[Array, "rows length width"]
    norm: nnx.LayerNorm
    first: Bool[Array, "*kinds"]


class Context(NamedTuple):
    """What a block reads of the batch besides its activations.

    Where the layers of a model differ in what they attend to, `spans` and `rotation` have a first axis of
    the kinds of layers, and every block gets those of its kind (see `Stack`).

    Attributes:
      spans: which tokens attend to which.
      tokens: token ids of the rows.
      rotation: of queries and keys by their positions; None where the embeddings have positions.
      relative: embeddings of relative positions, which the layers share; None where there are none.
      beside: what joins the first block's output, if anything does.
    """

    spans: Spans
    tokens: Int[Array, "rows length"]
    rotation: Rotation | None = None
    relative: Float[Array, "positions width"] | None = None
    beside: Beside | None = None

    def of_kind(self, kind: Int[Array, ""]) -> Context:
        """What a block of one kind reads."""
        spans, rotation = jax.tree.map(lambda x: x[kind], (self.spans, self.rotation))
        beside = self.beside and self.beside._replace(first=self.beside.first[kind])
        return self._replace(spans=spans, rotation=rotation, beside=beside)


class Sublayer(nnx.Module):
    """Attention or feed-forward with the residual around it.

    `residual` is where bottleneck adapters go: a module of your own that subclasses this and calls
    `self.residual(x, out)` can have them too.

    Attributes:
      norm: before or after the sublayer, with a `scale` and an `epsilon`.
    """

    norm: nnx.LayerNorm | nnx.RMSNorm

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Joins the sublayer's input and its output, on which dropout is done already."""
        raise NotImplementedError


class PreNorm(Sublayer):
    """A sublayer whose norm comes first (GPT-2, Llama)."""

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Adds them: x + out."""
        return x + out


class PostNorm(Sublayer):
    """A sublayer whose LayerNorm comes last (BERT, RoBERTa)."""

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Adds and normalises them: LayerNorm(x + out)."""
        normalised: Array = self.norm(x + out)
        return normalised


class AttentionSublayer(Sublayer):
    """What a block calls its attention for; a model that does not decode defines only the call.

    Attributes:
      keeps_apart: whether rows are shared by examples of different adapters, see `kept_apart`.
      of_positions: names of its layers that project what belongs to no example, too.
    """

    keeps_apart: bool = False
    of_positions: tuple[str, ...] = ()

    def around(self, attention: Attention) -> Attention:
        """The attention that this sublayer calls: the given one, if need be with `kept_apart` around it."""
        return functools.partial(kept_apart, attention) if self.keeps_apart else attention

    def __call__(
        self,
        x: Float[Array, "rows length width"],
        context: Context,
        keys: tuple[DropoutKey, DropoutKey],
    ) -> Float[Array, "rows length width"]:
        """Attends as the context's spans say.

        Args:
          x: activations.
          context: of the batch, for layers of this kind.
          keys: dropout keys of the attention weights and of the output.
        """
        raise NotImplementedError

    def prefill(
        self, x: Float[Array, "n prompt width"], context: Context
    ) -> tuple[Float[Array, "n prompt width"], KeysValues]:
        """Reads prompts without dropout: the output, and their keys and values for the cache."""
        raise NotImplementedError

    def decode_step(
        self, x: Float[Array, "n beams width"], layer_cache: LayerCache, cache: Cache
    ) -> tuple[Float[Array, "n beams width"], KeysValues]:
        """Reads one token per beam: the output, and the tokens' keys and values for the cache."""
        raise NotImplementedError


class FeedForwardSublayer(Sublayer):
    """What a block calls its feed-forward layer for."""

    def __call__(
        self, x: Float[Array, "rows length width"], key: DropoutKey
    ) -> Float[Array, "rows length width"]:
        """Transforms every token by itself; `key` switches dropout on."""
        raise NotImplementedError


class Block(nnx.Module):
    """One Transformer layer: attention, then the feed-forward layer.

    Attributes:
      reads_embeddings: whether it reads the model's embeddings by another way than its input.
    """

    reads_embeddings: bool = False

    def __init__(self, attention: AttentionSublayer, feed_forward: FeedForwardSublayer):
        self.attention = attention
        self.feed_forward = feed_forward

    def __call__(
        self, x: Float[Array, "rows length width"], context: Context, *, key: DropoutKey = None
    ) -> Float[Array, "rows length width"]:
        """Runs the layer; `key` switches dropout on."""
        weights_key, output_key, feed_forward_key = split_key(key, 3)
        x = constrain(x, "batch", None, "width")
        x = self.attention(x, context, (weights_key, output_key))
        return self._feed_forward(constrain(x, "batch", None, "width"), feed_forward_key)

    def prefill(
        self, x: Float[Array, "n prompt width"], context: Context
    ) -> tuple[Float[Array, "n prompt width"], KeysValues]:
        """Runs the layer on prompts: its output, and their keys and values."""
        mixed, new = self.attention.prefill(x, context)
        return self._feed_forward(mixed, None), new

    def decode_step(
        self, x: Float[Array, "n beams width"], layer_cache: LayerCache, cache: Cache
    ) -> tuple[Float[Array, "n beams width"], KeysValues]:
        """Runs the layer on one token per beam: its output, and the tokens' keys and values.

        Args:
          x: activations of the beams' newest tokens.
          layer_cache: the layer's part of the cache.
          cache: the whole cache, before this step.
        """
        mixed, new = self.attention.decode_step(x, layer_cache, cache)
        return self._feed_forward(mixed, None), new

    def _feed_forward(
        self, x: Float[Array, "rows length width"], key: DropoutKey
    ) -> Float[Array, "rows length width"]:
        return constrain(self.feed_forward(x, key), "batch", None, "width")
