"""GPT-2 and the GPT-3 shape: a pre-norm Transformer decoder with fused q, k, v.

Radford et al. 2019; the LoRA paper's sections 5.4 and 5.5. The output embedding is the input
embedding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.dropout import DropoutKey, dropout
from lora_jax.errors import InputError
from lora_jax.models import ranges
from lora_jax.models.attention.attend import Kernel, attend, check_kernel
from lora_jax.models.cache import Cache, KeysValues, LayerCache, attend_cached
from lora_jax.models.decoder import Decoder
from lora_jax.models.parts import (
    check_base_format,
    check_compute_dtype,
    linear,
    norm,
    table,
    tied_logits,
)
from lora_jax.models.stack import Remat, Stack
from lora_jax.models.sublayer import (
    AttentionSublayer,
    Block,
    Context,
    FeedForwardSublayer,
    PreNorm,
)
from lora_jax.ranges import Range
from lora_jax.sharding.axes import constrain

# Of the fields that config.json has, see `GPT2Config`.
RANGES: Mapping[str, Range] = {
    "n_embd": ranges.WIDTH,
    "n_layer": ranges.DEPTH,
    "n_head": ranges.WIDTH,
    "vocab_size": ranges.ROWS,
    "n_positions": ranges.ROWS,
    "n_inner": ranges.OPTIONAL_INNER,
    "layer_norm_epsilon": ranges.EPSILON,
    "initializer_range": ranges.SPREAD,
    "embd_pdrop": ranges.RATE,
    "attn_pdrop": ranges.RATE,
    "resid_pdrop": ranges.RATE,
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes and settings of a GPT-2; the names follow Hugging Face's GPT-2 config.json.

    The three `pdrop` rates default to 0: the code of the paper's GPT-2 runs (section D.3) has no
    dropout but that of the LoRA branch. `unroll` and `remat` say how the stack runs, see `Stack`;
    `compute_dtype` is the type of activations and matrix products, whatever type the parameters have;
    `base_format` is the form of the matrices when the model is read, see `base_formats`; `attention`
    says by whom attention is computed, see `attend`.

    Raises:
      ValueError: a size or rate is out of its range, the heads do not divide the width, or the type
        is unknown.
    """

    architecture: ClassVar[str] = "gpt2"

    n_embd: int
    n_layer: int
    n_head: int
    _: dataclasses.KW_ONLY
    vocab_size: int = 50257
    n_positions: int = 1024
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    unroll: int = 1
    remat: Remat = "none"
    compute_dtype: str = "float32"
    base_format: str = "float"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_base_format(self.base_format)
        ranges.check(self, RANGES)
        check_kernel(self, "attn_pdrop")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")

    @property
    def max_length(self) -> int:
        """Tokens of the longest example that has position embeddings."""
        return self.n_positions

    @property
    def width(self) -> int:
        """Values of an activation."""
        return self.n_embd

    @property
    def depth(self) -> int:
        """Number of Transformer layers."""
        return self.n_layer

    @property
    def heads(self) -> int:
        """Number of attention heads of a layer."""
        return self.n_head


# The models of the paper: Tables 3, 13, 14 (medium, large) and 4 (GPT-3).
SIZES = {
    "gpt2": GPT2Config(768, 12, 12),
    "gpt2-medium": GPT2Config(1024, 24, 16),
    "gpt2-large": GPT2Config(1280, 36, 20),
    "gpt2-xl": GPT2Config(1600, 48, 25),
    "gpt3-175b": GPT2Config(12288, 96, 96, n_positions=2048),
}


def _heads_first(x: Float[Array, "n a b size"]) -> Float[Array, "n b a size"]:
    return jnp.swapaxes(x, 1, 2)


class Embeddings(nnx.Module):
    """The sum of token and position embeddings."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs):
        width = config.n_embd
        self.token = table(config, config.vocab_size, width, rngs, "vocabulary")
        self.position = table(config, config.n_positions, width, rngs)
        self.rate = config.embd_pdrop
        self.dtype = jnp.dtype(config.compute_dtype)

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "*rows"],
        positions: Int[Array | np.ndarray, "*#rows"],
        key: DropoutKey = None,
    ) -> Float[Array, "*rows embd"]:
        """Embeds tokens at their positions; `key` switches dropout on."""
        token = self.token(jnp.asarray(tokens)).astype(jnp.float32)
        x = token + self.position(jnp.asarray(positions)).astype(jnp.float32)
        return dropout(x.astype(self.dtype), self.rate, key)


class Attention(PreNorm, AttentionSublayer):
    """LayerNorm, causal multi-head self-attention, residual."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs):
        d = config.n_embd
        self.norm = norm(config, config.n_embd, config.layer_norm_epsilon, rngs)
        # One product for q, k and v with a kernel (embd, 3, embd): its last axis splits into heads,
        # and over devices, for each of the three. That of a kernel (embd, 3 embd) would not.
        self.qkv = linear(config, ("embed", "heads"), (d, (3, d)), rngs)
        self.output = linear(config, ("heads", "embed"), (d, d), rngs)
        self.config = config

    def _project(
        self, x: Float[Array, "rows length embd"]
    ) -> list[Float[Array, "rows length heads size"]]:
        heads = (*x.shape[:-1], self.config.n_head, -1)
        qkv = self.qkv(self.norm(x))
        parts = (qkv[..., part, :].reshape(heads) for part in range(3))
        return [constrain(part, "batch", None, "heads", None) for part in parts]

    def __call__(
        self,
        x: Float[Array, "rows length embd"],
        context: Context,
        keys: tuple[DropoutKey, DropoutKey],
    ) -> Float[Array, "rows length embd"]:
        """Attends as the context says; see `AttentionSublayer`."""
        q, k, v = self._project(x)
        rate, kernel = self.config.attn_pdrop, self.config.attention
        attention = self.around(functools.partial(attend, rate=rate, key=keys[0], kernel=kernel))
        mixed = attention(q, k, v, context.spans)
        out = self.output(mixed.reshape(x.shape))
        return self.residual(x, dropout(out, self.config.resid_pdrop, keys[1]))

    def prefill(
        self, x: Float[Array, "n prompt embd"], context: Context
    ) -> tuple[Float[Array, "n prompt embd"], KeysValues]:
        """Reads prompts without dropout: the output, and their keys and values."""
        q, k, v = self._project(x)
        mixed = attend(q, k, v, context.spans, kernel=self.config.attention)
        out = self.output(mixed.reshape(x.shape))
        return self.residual(x, out), KeysValues(_heads_first(k), _heads_first(v))

    def decode_step(
        self, x: Float[Array, "n beams embd"], layer_cache: LayerCache, cache: Cache
    ) -> tuple[Float[Array, "n beams embd"], KeysValues]:
        """Attends from one token per beam to its prompt, the tokens generated before, and itself."""
        q, k, v = (_heads_first(part) for part in self._project(x))
        mixed = attend_cached(q, k, v, layer_cache, cache)
        out = self.output(_heads_first(mixed).reshape(x.shape))
        return self.residual(x, out), KeysValues(k, v)


@jax.checkpoint  # the backward pass keeps x only
def tanh_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by tanh."""
    return jax.nn.gelu(x, approximate=True)


class FeedForward(PreNorm, FeedForwardSublayer):
    """LayerNorm, two linear layers around GELU (tanh form), residual."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs):
        inner = config.n_inner or 4 * config.n_embd
        self.norm = norm(config, config.n_embd, config.layer_norm_epsilon, rngs)
        self.up = linear(config, ("embed", "mlp"), (config.n_embd, inner), rngs)
        self.down = linear(config, ("mlp", "embed"), (inner, config.n_embd), rngs)
        self.rate = config.resid_pdrop

    def __call__(
        self, x: Float[Array, "rows length embd"], key: DropoutKey
    ) -> Float[Array, "rows length embd"]:
        """Transforms every token by itself."""
        inner = constrain(self.up(self.norm(x)), "batch", None, "mlp")
        out = self.down(tanh_gelu(inner))
        return self.residual(x, dropout(out, self.rate, key))


class GPT2(Decoder):
    """A GPT-2: learned positions, pre-norm blocks, and the tied output embedding."""

    embeddings: Embeddings

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.layers = Stack(
            lambda r: Block(Attention(config, r), FeedForward(config, r)),
            config.n_layer,
            unroll=config.unroll,
            remat=config.remat,
            rngs=rngs,
        )
        self.norm = norm(config, config.n_embd, config.layer_norm_epsilon, rngs)
        self.config = config

    def embed(
        self,
        tokens: Int[Array | np.ndarray, "*rows"],
        positions: Int[Array | np.ndarray, "*#rows"],
        key: DropoutKey = None,
    ) -> Float[Array, "*rows embd"]:
        """The sum of the embeddings of tokens and positions."""
        return self.embeddings(tokens, positions, key)

    def output_logits(self, hidden: Float[Array, "... embd"]) -> Float[Array, "... vocab"]:
        """The product with the table of tokens."""
        return tied_logits(self.embeddings.token, hidden)
