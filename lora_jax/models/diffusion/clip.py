"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020), which Stable Diffusion reads texts by.

Its layers stand in a list, not in a scan: their paths are the names of transformers, as adapters have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.errors import InputError
from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.spans import Spans
from lora_jax.models.diffusion.clip_config import CLIPTextConfig
from lora_jax.models.diffusion.layers import checkpointed
from lora_jax.models.encoder import gelu
from lora_jax.models.parts import linear, norm, table
from lora_jax.sharding.axes import constrain

Hidden = Float[Array, "batch length width"]


@jax.checkpoint  # the backward pass keeps x only
def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


class SelfAttention(nnx.Module):
    """Causal attention with several heads."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        sizes = config.hidden_size, config.hidden_size
        self.q_proj = linear(config, ("embed", "heads"), sizes, rngs)
        self.k_proj = linear(config, ("embed", "heads"), sizes, rngs)
        self.v_proj = linear(config, ("embed", "heads"), sizes, rngs)
        self.out_proj = linear(config, ("heads", "embed"), sizes, rngs)
        self.heads, self.kernel = config.num_attention_heads, config.attention

    def __call__(self, x: Hidden) -> Hidden:
        """What each token reads of itself and those before it."""
        parts = (
            f(x).reshape(*x.shape[:-1], self.heads, -1)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = (constrain(part, "batch", None, "heads", None) for part in parts)
        last = jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32)[None]
        mixed = attend(q, k, v, Spans(jnp.zeros_like(last), last, causal=True), kernel=self.kernel)
        result: Array = self.out_proj(mixed.reshape(x.shape))
        return result


class MLP(nnx.Module):
    """A feed-forward layer."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        outer, inner = config.hidden_size, config.intermediate_size
        self.fc1 = linear(config, ("embed", "mlp"), (outer, inner), rngs)
        self.fc2 = linear(config, ("mlp", "embed"), (inner, outer), rngs)
        self.activation = config.hidden_act

    def __call__(self, x: Hidden) -> Hidden:
        """What it adds to each token."""
        result: Array = self.fc2(_ACTIVATIONS[self.activation](self.fc1(x)))
        return result


class EncoderLayer(nnx.Module):
    """Attention and a feed-forward layer, each behind a LayerNorm."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.layer_norm1 = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.self_attn = SelfAttention(config, rngs)
        self.layer_norm2 = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: Hidden) -> Hidden:
        """The tokens, changed."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """The sum of the embeddings of tokens and of positions."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.token_embedding = table(config, config.vocab_size, width, rngs, "vocabulary")
        self.position_embedding = table(config, config.max_position_embeddings, width, rngs)

    def __call__(self, tokens: Int[Array, "batch length"]) -> Hidden:
        """Embeds token ids."""
        places = self.position_embedding(jnp.arange(tokens.shape[1]))
        return self.token_embedding(tokens).astype(jnp.float32) + places.astype(jnp.float32)


class Layers(nnx.Module):
    """The list of layers, under the name that transformers gives it."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.layers = nnx.List(EncoderLayer(config, rngs) for _ in range(config.num_hidden_layers))
        self.remat = config.remat

    def __call__(self, x: Hidden) -> Hidden:
        """Runs the layers in order."""
        for layer in self.layers:
            x = checkpointed(self.remat, layer, x)
        return x


class TextModel(nnx.Module):
    """Embeddings, layers, and a norm behind them."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.encoder = Layers(config, rngs)
        self.final_layer_norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.dtype = config.compute_dtype

    def __call__(self, tokens: Int[Array, "batch length"]) -> Hidden:
        """The last hidden state of each token."""
        x = constrain(self.embeddings(tokens).astype(self.dtype), "batch", None, "width")
        result: Array = self.final_layer_norm(self.encoder(x))
        return result


class CLIPTextModel(nnx.Module):
    """A text encoder; `text_model` is what transformers' files call it.

    Attributes:
      config: its sizes and settings.
    """

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.text_model = TextModel(config, rngs)
        self.config = config

    def __call__(
        self, tokens: Int[Array | np.ndarray, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """The last hidden state of each token, in float32: the context that a U-Net reads.

        Args:
          tokens: ids; texts are padded behind their end, which changes nothing of what comes before.

        Raises:
          InputError: there are more tokens than positions.
        """
        if tokens.shape[1] > self.config.max_position_embeddings:
            raise InputError(
                f"{tokens.shape[1]} tokens, and max_position_embeddings of the text encoder is "
                f"{self.config.max_position_embeddings}: cut the text"
            )
        return self.text_model(jnp.asarray(tokens)).astype(jnp.float32)
