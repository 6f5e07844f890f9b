"""DeBERTa v2 and v3 encoders with a classification or regression head (He et al. 2021).

They are post-norm Transformer encoders like BERT, with scores that add to the product of two tokens those
of each with the relative position between them (disentangled attention). v2 has a convolution beside its
first layer. Batches are packed as those of `encoder`.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.data.batch import Inputs
from lora_jax.dropout import DropoutKey, split_key
from lora_jax.models.attention.spans import of_kinds, of_segments
from lora_jax.models.deberta_config import LAYER_NORM, DebertaConfig
from lora_jax.models.deberta_layers import Convolution, DebertaBlock, Embeddings
from lora_jax.models.encoder import Classifier
from lora_jax.models.encoder_heads import DenseHead
from lora_jax.models.parts import norm, table
from lora_jax.models.stack import Stack
from lora_jax.models.sublayer import Beside, Context

_FIRST, _OTHER = 0, 1  # kinds of blocks where a convolution stands beside the first one


class DebertaEncoder(nnx.Module):
    """Embeddings, a stack of blocks, and what the blocks share."""

    def __init__(self, config: DebertaConfig, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        kinds: tuple[int, ...] = ()
        if config.relative_attention:
            self.relative = table(config, 2 * config.span, config.hidden_size, rngs)
        if config.norm_rel_ebd == LAYER_NORM:
            self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        if config.conv_kernel_size:
            self.convolution = Convolution(config, rngs)
            kinds = (_FIRST, *[_OTHER] * (config.num_hidden_layers - 1))
        self.layers = Stack(
            lambda r: DebertaBlock(config, r),
            config.num_hidden_layers,
            unroll=config.unroll,
            remat=config.remat,
            kinds=kinds,
            rngs=rngs,
        )
        self.config = config

    def __call__(
        self, inputs: Inputs, *, key: DropoutKey = None
    ) -> Float[Array, "rows length hidden"]:
        """Hidden states of every token; `key` switches dropout on."""
        embeddings_key, layers_key, convolution_key = split_key(key, 3)
        spans = of_segments(jnp.asarray(inputs.segments), causal=False)
        context = Context(spans, jnp.asarray(inputs.tokens), relative=self._relative())
        x = self.embeddings(inputs, embeddings_key)
        if self.config.conv_kernel_size:
            states = self.convolution(x, spans, convolution_key)
            first = jnp.arange(2) == _FIRST
            context = context._replace(
                spans=of_kinds([spans, spans]), beside=Beside(states, self.convolution.norm, first)
            )
        return self.layers(x, context, key=layers_key)

    def _relative(self) -> Float[Array, "positions hidden"] | None:
        if not (self.config.by_query or self.config.by_key):
            return None
        rows = self.relative(jnp.arange(2 * self.config.span))
        if self.config.norm_rel_ebd == LAYER_NORM:
            rows = self.norm(rows.astype(jnp.float32))
        embeddings: Array = rows
        return embeddings


class DebertaClassifier(Classifier):
    """A DeBERTa with a head on the classification token of every example; see `Classifier`."""

    def __init__(self, config: DebertaConfig, num_outputs: int, rngs: nnx.Rngs):
        self.encoder = DebertaEncoder(config, rngs)
        self.head = DenseHead(config, num_outputs, rngs)
        self.config = config
