"""Decoders of the Llama kind: RMSNorm, rotary positions, gated feed-forward, grouped-query attention.

Llama (Touvron et al. 2023), SmolLM, Mistral, Qwen 2, 2.5 and 3, Gemma 2 and 3: one model, whose
configuration says what a family has besides. `llama_json` reads it from their files.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.dropout import DropoutKey
from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.scores import Scores
from lora_jax.models.attention.spans import Spans, of_kinds
from lora_jax.models.cache import Cache, KeysValues, LayerCache, attend_cached
from lora_jax.models.decoder import Decoder
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.models.parts import RMSNorm, linear, rms_norm, table, tied_logits
from lora_jax.models.rotary import Rotation, rotate, rotations
from lora_jax.models.stack import Stack
from lora_jax.models.sublayer import (
    AttentionSublayer,
    Block,
    Context,
    FeedForwardSublayer,
    PreNorm,
)
from lora_jax.sharding.axes import constrain

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class LlamaSublayer(PreNorm):
    """A sublayer with RMSNorm before it, and in Gemma a second one behind it, before the residual.

    Attributes:
      post_norm: the second one; None without it.
    """

    post_norm: RMSNorm | None

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.norm = rms_norm(config, width, rngs)
        self.post_norm = rms_norm(config, width, rngs) if config.post_norms else None
        self.config = config

    def residual(
        self, x: Float[Array, "... width"], out: Float[Array, "... width"]
    ) -> Float[Array, "... width"]:
        """Adds the sublayer's output, normalised where the family does so."""
        return super().residual(x, out if self.post_norm is None else self.post_norm(out))


class Attention(LlamaSublayer, AttentionSublayer):
    """RMSNorm, causal self-attention with rotary positions and shared keys and values, residual."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        width, size = config.hidden_size, config.head_size
        own, shared = size * config.num_attention_heads, size * config.shared_heads
        bias = config.attention_bias
        self.query = linear(config, ("embed", "heads"), (width, own), rngs, bias=bias)
        self.key = linear(config, ("embed", "heads"), (width, shared), rngs, bias=bias)
        self.value = linear(config, ("embed", "heads"), (width, shared), rngs, bias=bias)
        out_bias = config.attention_output_bias
        self.output = linear(config, ("heads", "embed"), (own, width), rngs, bias=out_bias)
        make = lambda: rms_norm(config, size, rngs, axis=None) if config.head_norms else None  # noqa: E731
        self.query_norm, self.key_norm = make(), make()
        self.scores = Scores(config.score_scale, config.attn_logit_softcapping)

    def _project(
        self, x: Float[Array, "rows length width"], rotation: Rotation
    ) -> list[Float[Array, "rows length heads size"]]:
        """Queries, keys and values."""
        x = self.norm(x)
        heads = (*x.shape[:-1], -1, self.config.head_size)
        q, k, v = (project(x).reshape(heads) for project in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        return [constrain(part, "batch", None, "heads", None) for part in (q, k, v)]

    def _attend(
        self,
        q: Float[Array, "rows length heads size"],
        k: Float[Array, "rows length shared size"],
        v: Float[Array, "rows length shared size"],
        spans: Spans,
        key: DropoutKey = None,
    ) -> Float[Array, "rows length heads size"]:
        config = self.config
        return attend(q, k, v, spans, config.attention_dropout, key, self.scores, config.attention)

    def _joined(self, mixed: Float[Array, "rows length heads size"]) -> Float[Array, ...]:
        out: Array = self.output(mixed.reshape(*mixed.shape[:2], -1))
        return out

    def __call__(
        self,
        x: Float[Array, "rows length width"],
        context: Context,
        keys: tuple[DropoutKey, DropoutKey],
    ) -> Float[Array, "rows length width"]:
        """Attends as the context says; see `AttentionSublayer`."""
        assert context.rotation is not None
        q, k, v = self._project(x, context.rotation)
        attention = self.around(functools.partial(self._attend, key=keys[0]))
        mixed = attention(q, k, v, context.spans)
        return self.residual(x, self._joined(mixed))

    def prefill(
        self, x: Float[Array, "n prompt width"], context: Context
    ) -> tuple[Float[Array, "n prompt width"], KeysValues]:
        """Reads prompts without dropout: the output, and their keys and values."""
        assert context.rotation is not None
        q, k, v = self._project(x, context.rotation)
        out = self._joined(self._attend(q, k, v, context.spans))
        return self.residual(x, out), KeysValues(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))

    def decode_step(
        self, x: Float[Array, "n beams width"], layer_cache: LayerCache, cache: Cache
    ) -> tuple[Float[Array, "n beams width"], KeysValues]:
        """Attends from one token per beam to its prompt, the tokens generated before, and itself."""
        kind, kinds = layer_cache.kind, self.config.kinds
        position = (cache.lengths + cache.step)[:, None]
        every = rotations([k.rotary for k in kinds], self.config.head_size, position)
        rotation = jax.tree.map(lambda part: part[0 if kind is None else kind], every)
        windows = [k.window for k in kinds]
        window = None if windows == [None] else _window(windows, kind)
        q, k, v = (jnp.swapaxes(part, 1, 2) for part in self._project(x, rotation))
        mixed = attend_cached(q, k, v, layer_cache, cache, self.scores, window)
        return self.residual(x, self._joined(jnp.swapaxes(mixed, 1, 2))), KeysValues(k, v)


def _window(windows: list[int | None], kind: Int[Array, ""] | None) -> Int[Array, ""]:
    """Tokens that a layer of a kind attends to; of all of them, more than there ever are."""
    tokens = jnp.array([np.iinfo(np.int32).max if w is None else w for w in windows], jnp.int32)
    return tokens[0 if kind is None else kind]


class FeedForward(LlamaSublayer, FeedForwardSublayer):
    """RMSNorm, down(activation(gate(x)) * up(x)), residual."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        sizes, bias = (config.hidden_size, config.intermediate_size), config.mlp_bias
        self.gate = linear(config, ("embed", "mlp"), sizes, rngs, bias=bias)
        self.up = linear(config, ("embed", "mlp"), sizes, rngs, bias=bias)
        self.down = linear(config, ("mlp", "embed"), sizes[::-1], rngs, bias=bias)

    def __call__(
        self, x: Float[Array, "rows length width"], key: DropoutKey
    ) -> Float[Array, "rows length width"]:
        """Transforms every token by itself; these models have no dropout here."""
        normed = self.norm(x)
        gate, up = (
            constrain(project(normed), "batch", None, "mlp") for project in (self.gate, self.up)
        )
        activation = _ACTIVATIONS[self.config.activation]
        # The backward pass keeps gate and up only.
        inner = jax.checkpoint(lambda gate, up: activation(gate) * up)(gate, up)
        return self.residual(x, self.down(inner))


class Embeddings(nnx.Module):
    """The table of tokens, multiplied by sqrt(width) in Gemma."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.token = table(config, config.vocab_size, config.hidden_size, rngs, "vocabulary")
        self.scale = config.hidden_size**0.5 if config.scaled_embeddings else 1.0
        self.dtype = jnp.dtype(config.compute_dtype)

    def __call__(self, tokens: Int[Array | np.ndarray, "*rows"]) -> Float[Array, "*rows width"]:
        """Embeds tokens; the factor is rounded to the type of computation, as Gemma was trained."""
        x: Array = self.token(jnp.asarray(tokens)).astype(self.dtype)
        return x if self.scale == 1 else x * jnp.asarray(self.scale, self.dtype)


class Llama(Decoder):
    """A decoder of the Llama kind.

    Attributes:
      embeddings: of tokens.
      lm_head: the output embedding; None where it is the table of tokens.
    """

    embeddings: Embeddings

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.layers = Stack(
            lambda r: Block(Attention(config, r), FeedForward(config, r)),
            config.num_hidden_layers,
            unroll=config.unroll,
            remat=config.remat,
            kinds=config.layer_kinds if len(config.kinds) > 1 else (),
            rngs=rngs,
        )
        self.norm = rms_norm(config, config.hidden_size, rngs)
        sizes = config.hidden_size, config.vocab_size
        tied = config.tie_word_embeddings
        head = None if tied else linear(config, ("embed", "vocabulary"), sizes, rngs, bias=False)
        self.lm_head = head
        self.config = config

    def embed(
        self,
        tokens: Int[Array | np.ndarray, "*rows"],
        positions: Int[Array | np.ndarray, "*#rows"],
        key: DropoutKey = None,
    ) -> Float[Array, "*rows width"]:
        """The embeddings of the tokens; positions are for attention."""
        return self.embeddings(tokens)

    def output_logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """The product with the output embedding, in Gemma 2 within a cap."""
        if self.lm_head is None:
            logits = tied_logits(self.embeddings.token, hidden)
        else:
            logits = self.lm_head(hidden).astype(jnp.float32)
        return Scores(cap=self.config.final_logit_softcapping).capped(logits)

    def context(
        self,
        tokens: Int[Array, "rows length"],
        positions: Int[Array, "#rows length"],
        spans: Spans,
    ) -> Context:
        """Spans and rotations for every kind of layer; see `Decoder.context`."""
        kinds = self.config.kinds
        rotation = rotations([kind.rotary for kind in kinds], self.config.head_size, positions)
        windows = [spans.within(kind.window) for kind in kinds]
        if len(kinds) == 1:
            return Context(windows[0], tokens, jax.tree.map(lambda part: part[0], rotation))
        return Context(of_kinds(windows), tokens, rotation)
