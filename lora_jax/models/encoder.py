"""BERT and RoBERTa encoders with a classification or regression head.

Both are post-norm Transformer encoders (Devlin et al. 2019; Liu et al. 2019); they differ in where
positions start and in the head, and ELECTRA and DistilBERT in embeddings and head only. Batches are
packed: several examples share a row, attention stays inside the segment of each, and the logits are
those of the unpacked examples.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.data.batch import Inputs
from lora_jax.dropout import DropoutKey, dropout, split_key
from lora_jax.models.activations import gelu
from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.spans import of_segments
from lora_jax.models.encoder_config import SIZES as SIZES
from lora_jax.models.encoder_config import EncoderConfig as EncoderConfig
from lora_jax.models.encoder_heads import DenseHead, OutputHead, head_linear
from lora_jax.models.parts import linear, norm, table
from lora_jax.models.stack import Stack
from lora_jax.models.sublayer import (
    AttentionSublayer,
    Block,
    Context,
    FeedForwardSublayer,
    PostNorm,
)
from lora_jax.sharding.axes import constrain


class Embeddings(nnx.Module):
    """The sum of word, position and token type embeddings, then LayerNorm and dropout.

    Tables of another width than the model's have a linear layer behind them (ELECTRA).
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        width = config.table_width
        self.word = table(config, config.vocab_size, width, rngs, "vocabulary")
        self.position = table(config, config.max_position_embeddings, width, rngs)
        if config.type_vocab_size:
            self.token_type = table(config, config.type_vocab_size, width, rngs)
        self.norm = norm(config, width, config.layer_norm_eps, rngs)
        if width != config.hidden_size:
            self.projection = linear(config, ("width", "embed"), (width, config.hidden_size), rngs)
        self.config = config

    def __call__(self, inputs: Inputs, key: DropoutKey) -> Float[Array, "rows length hidden"]:
        """Embeds a batch; `key` switches dropout on."""
        tokens, _, positions, types = (jnp.asarray(field) for field in inputs)
        x = self.word(tokens).astype(jnp.float32)
        if self.config.type_vocab_size:
            x += self.token_type(types).astype(jnp.float32)
        x += self.position(positions + self.config.position_offset).astype(jnp.float32)
        x = dropout(self.norm(x), self.config.hidden_dropout_prob, key)
        if self.config.table_width == self.config.hidden_size:
            return x
        projected: Array = self.projection(x)
        return projected


class Attention(PostNorm, AttentionSublayer):
    """Multi-head self-attention with residual and LayerNorm after it."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        d = config.hidden_size
        self.query = linear(config, ("embed", "heads"), (d, d), rngs)
        self.key = linear(config, ("embed", "heads"), (d, d), rngs)
        self.value = linear(config, ("embed", "heads"), (d, d), rngs)
        self.output = linear(config, ("heads", "embed"), (d, d), rngs)
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "rows length hidden"],
        context: Context,
        keys: tuple[DropoutKey, DropoutKey],
    ) -> Float[Array, "rows length hidden"]:
        """Attends as the context says; see `AttentionSublayer`."""
        heads = (*x.shape[:-1], self.config.num_attention_heads, -1)
        parts = (f(x).reshape(heads) for f in (self.query, self.key, self.value))
        q, k, v = (constrain(part, "batch", None, "heads", None) for part in parts)
        rate, kernel = self.config.attention_probs_dropout_prob, self.config.attention
        attention = self.around(functools.partial(attend, rate=rate, key=keys[0], kernel=kernel))
        mixed = attention(q, k, v, context.spans)
        out = self.output(mixed.reshape(x.shape))
        return self.residual(x, dropout(out, self.config.hidden_dropout_prob, keys[1]))


class FeedForward(PostNorm, FeedForwardSublayer):
    """Two linear layers around GELU, with residual and LayerNorm after them."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        sizes = config.hidden_size, config.intermediate_size
        self.up = linear(config, ("embed", "mlp"), sizes, rngs)
        self.down = linear(config, ("mlp", "embed"), sizes[::-1], rngs)
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.config = config

    def __call__(
        self, x: Float[Array, "rows length hidden"], key: DropoutKey
    ) -> Float[Array, "rows length hidden"]:
        """Transforms every token by itself."""
        out = self.down(gelu(constrain(self.up(x), "batch", None, "mlp")))
        return self.residual(x, dropout(out, self.config.hidden_dropout_prob, key))


class Encoder(nnx.Module):
    """Embeddings and a stack of blocks."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.layers = Stack(
            lambda r: Block(Attention(config, r), FeedForward(config, r)),
            config.num_hidden_layers,
            unroll=config.unroll,
            remat=config.remat,
            rngs=rngs,
        )
        self.config = config

    def __call__(
        self, inputs: Inputs, *, key: DropoutKey = None
    ) -> Float[Array, "rows length hidden"]:
        """Hidden states of every token; `key` switches dropout on."""
        embeddings_key, layers_key = split_key(key, 2)
        spans = of_segments(jnp.asarray(inputs.segments), causal=False)
        context = Context(spans, jnp.asarray(inputs.tokens))
        return self.layers(self.embeddings(inputs, embeddings_key), context, key=layers_key)


class Classifier(nnx.Module):
    """An encoder with a head on the classification token of every example.

    `num_outputs` is the number of classes, or 1 for regression. BERT's pooler is pre-trained, so it
    belongs to the base and not to the head.
    """

    per_output = ("pooler", "head")  # see `lora_jax.pool.route`
    encoder: Any
    head: Any  # whose last layer is `output`

    def __init__(self, config: EncoderConfig, num_outputs: int, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)
        if config.has_pooler:
            self.pooler = head_linear(config, config.hidden_size, rngs)
        head = OutputHead if config.has_pooler else DenseHead
        self.head = head(config, num_outputs, rngs)
        self.config = config

    def __call__(
        self,
        inputs: Inputs,
        rows: Int[Array | np.ndarray, " n"],
        columns: Int[Array | np.ndarray, " n"],
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "n outputs"]:
        """Logits (float32) of n examples.

        Args:
          inputs: packed token rows.
          rows: row of each example's classification token.
          columns: its column.
          key: switches dropout on.
        """
        keys = split_key(key, 2)
        first = constrain(self.encoder(inputs, key=keys[0])[rows, columns], "batch", "width")
        first = first.astype(jnp.float32)
        if self.config.has_pooler:
            first = jnp.tanh(self.pooler(first))
        logits: Array = self.head(first, keys[1]).astype(jnp.float32)
        return logits
