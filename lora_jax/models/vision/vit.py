"""Vision Transformers with a classification head (Dosovitskiy et al. 2021, arXiv 2010.11929).

A picture is cut into square patches, a convolution embeds each of them, and pre-norm Transformer blocks
read them behind a class token, from whose last state the head computes the logits. Tensors are those of
transformers' `ViTForImageClassification`; pictures are (n, height, width, channels) here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.dropout import DropoutKey, dropout, split_key
from lora_jax.errors import InputError
from lora_jax.models import ranges
from lora_jax.models.attention.attend import Kernel, attend, check_kernel
from lora_jax.models.attention.spans import of_segments
from lora_jax.models.encoder import gelu
from lora_jax.models.parts import check_compute_dtype, linear, norm
from lora_jax.models.stack import Remat, Stack
from lora_jax.models.sublayer import (
    AttentionSublayer,
    Block,
    Context,
    FeedForwardSublayer,
    PreNorm,
)
from lora_jax.models.vision.head import Head, check_pictures
from lora_jax.ranges import Flag, Range
from lora_jax.sharding.axes import constrain

# Of the fields that config.json has, see `ViTConfig`.
RANGES: Mapping[str, Range] = {
    "hidden_size": ranges.WIDTH,
    "num_hidden_layers": ranges.DEPTH,
    "num_attention_heads": ranges.WIDTH,
    "intermediate_size": ranges.INNER,
    "image_size": ranges.WIDTH,
    "patch_size": ranges.WIDTH,
    "num_channels": ranges.WIDTH,
    "layer_norm_eps": ranges.EPSILON,
    "hidden_dropout_prob": ranges.RATE,
    "attention_probs_dropout_prob": ranges.RATE,
    "initializer_range": ranges.SPREAD,
    "qkv_bias": Flag(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and settings of a ViT; names and defaults follow Hugging Face's config.json.

    Pictures are squares of `image_size`, patches squares of `patch_size`. `unroll` and `remat` say how the
    stack of blocks runs, see `Stack`; `compute_dtype` is the type of activations and matrix products below
    the head; `attention` says by whom attention is computed, see `attend`.

    Raises:
      ValueError: a size or rate is out of its range, the heads do not divide the width, or the patches do
        not fill the picture.
    """

    architecture: ClassVar[str] = "vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    qkv_bias: bool = True
    unroll: int = 1
    remat: Remat = "none"
    compute_dtype: str = "float32"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        ranges.check(self, RANGES)
        check_kernel(self, "attention_probs_dropout_prob")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )

    @property
    def depth(self) -> int:
        """Number of Transformer layers."""
        return self.num_hidden_layers

    @property
    def patches(self) -> int:
        """Number of patches of a picture."""
        return (self.image_size // self.patch_size) ** 2


class Embeddings(nnx.Module):
    """A class token and the patches of a picture, each with an embedding of its position."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.initializer_range)
        size, width = (config.patch_size, config.patch_size), config.hidden_size
        self.patch = nnx.Conv(
            config.num_channels, width, size, strides=size, padding="VALID", kernel_init=normal,
            dtype=jnp.dtype(config.compute_dtype), rngs=rngs,
        )  # fmt: skip
        self.class_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.position = nnx.Param(normal(rngs.params(), (1, config.patches + 1, width)))
        self.rate = config.hidden_dropout_prob

    def __call__(
        self, images: Float[Array, "n height width channels"], key: DropoutKey
    ) -> Float[Array, "n tokens hidden"]:
        """Embeds pictures; `key` switches dropout on."""
        patches = self.patch(images)
        patches = patches.reshape(len(patches), -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_token[...], (len(patches), 1, patches.shape[-1]))
        x = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        return dropout(x + self.position[...].astype(x.dtype), self.rate, key)


class Attention(PreNorm, AttentionSublayer):
    """LayerNorm, multi-head self-attention, residual."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        d, bias = config.hidden_size, config.qkv_bias
        self.norm = norm(config, d, config.layer_norm_eps, rngs)
        self.query = linear(config, ("embed", "heads"), (d, d), rngs, bias)
        self.key = linear(config, ("embed", "heads"), (d, d), rngs, bias)
        self.value = linear(config, ("embed", "heads"), (d, d), rngs, bias)
        self.output = linear(config, ("heads", "embed"), (d, d), rngs)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "rows length hidden"],
        context: Context,
        keys: tuple[DropoutKey, DropoutKey],
    ) -> Float[Array, "rows length hidden"]:
        """Attends as the context says; see `AttentionSublayer`."""
        inputs = self.norm(x)
        heads = (*x.shape[:-1], self.config.num_attention_heads, -1)
        parts = (f(inputs).reshape(heads) for f in (self.query, self.key, self.value))
        q, k, v = (constrain(part, "batch", None, "heads", None) for part in parts)
        rate, kernel = self.config.attention_probs_dropout_prob, self.config.attention
        attention = self.around(functools.partial(attend, rate=rate, key=keys[0], kernel=kernel))
        out = self.output(attention(q, k, v, context.spans).reshape(x.shape))
        return self.residual(x, dropout(out, self.config.hidden_dropout_prob, keys[1]))


class FeedForward(PreNorm, FeedForwardSublayer):
    """LayerNorm, two linear layers around GELU, residual."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        sizes = config.hidden_size, config.intermediate_size
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.up = linear(config, ("embed", "mlp"), sizes, rngs)
        self.down = linear(config, ("mlp", "embed"), sizes[::-1], rngs)
        self.rate = config.hidden_dropout_prob

    def __call__(
        self, x: Float[Array, "rows length hidden"], key: DropoutKey
    ) -> Float[Array, "rows length hidden"]:
        """Transforms every token by itself."""
        inner = constrain(self.up(self.norm(x)), "batch", None, "mlp")
        return self.residual(x, dropout(self.down(gelu(inner)), self.rate, key))


class ViT(nnx.Module):
    """A Vision Transformer with a head on its class token, for `num_outputs` classes."""

    def __init__(self, config: ViTConfig, num_outputs: int, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.layers = Stack(
            lambda r: Block(Attention(config, r), FeedForward(config, r)),
            config.num_hidden_layers,
            unroll=config.unroll,
            remat=config.remat,
            rngs=rngs,
        )
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.head = Head(config.hidden_size, num_outputs, rngs)
        self.config = config

    def __call__(
        self,
        images: Float[Array | np.ndarray, "n height width channels"],
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "n outputs"]:
        """Logits (float32) of pictures; `key` switches dropout on.

        Raises:
          ValueError: pictures of another size or number of channels.
        """
        size = self.config.image_size
        check_pictures(images, self.config.num_channels, size)
        embeddings_key, layers_key = split_key(key, 2)
        x = self.embeddings(jnp.asarray(images), embeddings_key)
        one_segment = jnp.zeros(x.shape[:2], jnp.int32)  # every token attends to all of its picture
        context = Context(of_segments(one_segment, causal=False), one_segment)
        hidden = self.layers(x, context, key=layers_key)
        return self.head(self.norm(hidden[:, 0]))
