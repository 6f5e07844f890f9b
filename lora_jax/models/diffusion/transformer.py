"""The transformers of the U-Net: attention among the pixels of an image, and of pixels to a context."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.spans import Spans
from lora_jax.models.diffusion.layers import Image, conv, dense, group_norm, on_devices
from lora_jax.models.diffusion.unet_config import UNetConfig
from lora_jax.models.encoder import gelu
from lora_jax.models.parts import norm
from lora_jax.sharding.axes import constrain, ways

_GROUP_EPSILON, _LAYER_EPSILON = 1e-6, 1e-5  # of every transformer, whatever `norm_eps` is
_INNER = 4  # times the width

Tokens = Float[Array, "batch tokens width"]


class Conditions(NamedTuple):
    """What the blocks of a U-Net read beside the image.

    Attributes:
      time: embedding of each image's time.
      context: a sequence for each image, such as the hidden states of a text; None without attention.
      mask: True for the elements of it that count; None: all of them.
    """

    time: Float[Array, "batch time"]
    context: Float[Array, "batch length context"] | None = None
    mask: Bool[Array, "batch length"] | None = None


class Attention(nnx.Module):
    """Attention with several heads: among tokens, or of tokens to a context."""

    def __init__(
        self, config: UNetConfig, width: int, heads: int, rngs: nnx.Rngs, context: int | None = None
    ):
        other = width if context is None else context
        self.to_q = dense(config, ("embed", "heads"), (width, width), rngs, bias=False)
        self.to_k = dense(config, ("embed", "heads"), (other, width), rngs, bias=False)
        self.to_v = dense(config, ("embed", "heads"), (other, width), rngs, bias=False)
        self.to_out = dense(config, ("heads", "embed"), (width, width), rngs)
        self.heads, self.kernel = heads, config.attention

    def __call__(
        self,
        x: Tokens,
        context: Float[Array, "batch length context"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
    ) -> Tokens:
        """What the tokens read of one another, or of the context's elements that `mask` names."""
        other = x if context is None else context
        q, k, v = (
            self._by_head(self.to_q(x)),
            *(self._by_head(f(other)) for f in (self.to_k, self.to_v)),
        )
        if context is None:
            every = jnp.zeros((1, x.shape[1]), jnp.int32)
            mixed = attend(q, k, v, Spans(every, every + x.shape[1]), kernel=self.kernel)
        else:
            mixed = _to_context(q, k, v, mask)
        result: Array = self.to_out(mixed.reshape(x.shape))
        return result

    def _by_head(
        self, x: Float[Array, "batch tokens all"]
    ) -> Float[Array, "batch tokens heads size"]:
        heads = x.reshape(*x.shape[:-1], self.heads, -1)
        # 5 heads on 2 devices are whole on each.
        axis = None if self.heads % ways("heads") else "heads"
        return constrain(heads, "batch", None, axis, None)


@jax.checkpoint  # the backward pass keeps q, k and v, and computes the weights again
def _to_context(
    q: Float[Array, "batch tokens heads size"],
    k: Float[Array, "batch length heads size"],
    v: Float[Array, "batch length heads size"],
    mask: Bool[Array, "batch length"] | None,
) -> Float[Array, "batch tokens heads size"]:
    """By XLA: there are few elements in a context, so that the scores are small."""
    seen = None if mask is None else mask[:, None, None]
    mixed: Array = jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")
    return mixed


class GatedGelu(nnx.Module):
    """A product of two linear layers, one of them through GELU (GEGLU; Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: UNetConfig, sizes: tuple[int, int], rngs: nnx.Rngs):
        self.proj = dense(config, ("embed", "mlp"), (sizes[0], 2 * sizes[1]), rngs)

    def __call__(self, x: Tokens) -> Float[Array, "batch tokens inner"]:
        """The inner values of a feed-forward layer."""
        values, gate = jnp.split(self.proj(x), 2, axis=-1)
        inner: Array = values * gelu(gate)
        return inner


class FeedForward(nnx.Module):
    """A feed-forward layer; between its layers, 0 and 2, diffusers has a dropout, 1."""

    def __init__(self, config: UNetConfig, width: int, rngs: nnx.Rngs):
        inner = _INNER * width
        first = GatedGelu(config, (width, inner), rngs)
        last = dense(config, ("mlp", "embed"), (inner, width), rngs)
        self.net = nnx.Dict({"0": first, "2": last})

    def __call__(self, x: Tokens) -> Tokens:
        """What it adds to each token."""
        result: Array = self.net["2"](self.net["0"](x))
        return result


class TransformerBlock(nnx.Module):
    """Attention among tokens, attention to the context, and a feed-forward layer, each behind a LayerNorm."""

    def __init__(self, config: UNetConfig, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = norm(config, width, _LAYER_EPSILON, rngs)
        self.attn1 = Attention(config, width, heads, rngs)
        self.norm2 = norm(config, width, _LAYER_EPSILON, rngs)
        self.attn2 = Attention(config, width, heads, rngs, config.cross_attention_dim)
        self.norm3 = norm(config, width, _LAYER_EPSILON, rngs)
        self.ff = FeedForward(config, width, rngs)

    def __call__(self, x: Tokens, conditions: Conditions) -> Tokens:
        """The tokens, changed."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), conditions.context, conditions.mask)
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    """A transformer whose tokens are the pixels of an image, and a shortcut around it."""

    def __init__(self, config: UNetConfig, channels: int, heads: int, rngs: nnx.Rngs):
        self.norm = group_norm(config, channels, _GROUP_EPSILON, rngs, silu=False)
        self.proj_in = self._projection(config, channels, rngs)
        self.transformer_blocks = nnx.List(
            TransformerBlock(config, channels, heads, rngs)
            for _ in range(config.transformer_layers_per_block)
        )
        self.proj_out = self._projection(config, channels, rngs)

    @staticmethod
    def _projection(config: UNetConfig, channels: int, rngs: nnx.Rngs) -> nnx.Linear | nnx.Conv:
        axes, sizes = ("embed", None), (channels, channels)
        if config.use_linear_projection:
            return dense(config, axes, sizes, rngs)
        return conv(config, axes, sizes, rngs, window=1)

    def __call__(self, x: Image, conditions: Conditions) -> Image:
        """The image, changed."""
        y = self.proj_in(self.norm(x))
        tokens = y.reshape(len(y), -1, y.shape[-1])
        for block in self.transformer_blocks:
            tokens = block(tokens, conditions)
        return on_devices(x + self.proj_out(tokens.reshape(y.shape)))
