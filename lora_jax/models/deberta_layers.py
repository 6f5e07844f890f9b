"""The layers of DeBERTa v2 and v3: embeddings, disentangled attention, the convolution, and the block."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.data.batch import Inputs
from lora_jax.dropout import DropoutKey, dropout, split_key
from lora_jax.models.activations import ACTIVATIONS
from lora_jax.models.attention.attend import attend
from lora_jax.models.attention.relative import Relative
from lora_jax.models.attention.scores import Scores
from lora_jax.models.attention.spans import Spans
from lora_jax.models.deberta_config import DebertaConfig
from lora_jax.models.encoder import FeedForward
from lora_jax.models.parts import linear, norm, table
from lora_jax.models.sublayer import AttentionSublayer, Block, Context, PostNorm
from lora_jax.sharding.axes import constrain, named


class Embeddings(nnx.Module):
    """The sum of word embeddings and others that the model has, then LayerNorm and dropout."""

    def __init__(self, config: DebertaConfig, rngs: nnx.Rngs):
        width = config.table_width
        self.word = table(config, config.vocab_size, width, rngs, "vocabulary")
        if config.position_biased_input:
            self.position = table(config, config.max_position_embeddings, width, rngs)
        if config.type_vocab_size:
            self.token_type = table(config, config.type_vocab_size, width, rngs)
        if width != config.hidden_size:
            sizes = width, config.hidden_size
            self.projection = linear(config, ("width", "embed"), sizes, rngs, bias=False)
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.config = config

    def __call__(self, inputs: Inputs, key: DropoutKey) -> Float[Array, "rows length hidden"]:
        """Embeds a batch; `key` switches dropout on."""
        tokens, _, positions, types = (jnp.asarray(field) for field in inputs)
        x = self.word(tokens).astype(jnp.float32)
        if self.config.position_biased_input:
            x += self.position(positions).astype(jnp.float32)
        if self.config.type_vocab_size:
            x += self.token_type(types).astype(jnp.float32)
        if self.config.table_width != self.config.hidden_size:
            x = self.projection(x)
        return dropout(self.norm(x), self.config.hidden_dropout_prob, key)


class Attention(PostNorm, AttentionSublayer):
    """Disentangled self-attention with residual and LayerNorm after it."""

    def __init__(self, config: DebertaConfig, rngs: nnx.Rngs):
        d = config.hidden_size
        inward = functools.partial(linear, config, ("embed", "heads"), (d, d), rngs)
        self.query, self.key, self.value = inward(), inward(), inward()
        if config.by_query and not config.share_att_key:
            self.position_key = inward()
        if config.by_key and not config.share_att_key:
            self.position_query = inward()
        self.output = linear(config, ("heads", "embed"), (d, d), rngs)
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        names = ("key", "query") if config.share_att_key else ("position_key", "position_query")
        used = (config.by_query, config.by_key)
        self.of_positions = tuple(n for n, there in zip(names, used, strict=True) if there)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "rows length hidden"],
        context: Context,
        keys: tuple[DropoutKey, DropoutKey],
    ) -> Float[Array, "rows length hidden"]:
        """Attends as the context says; see `AttentionSublayer`."""
        weights_key, positions_key = split_key(keys[0], 2)
        q, k, v = (self._by_head(f(x), "batch") for f in (self.query, self.key, self.value))
        relative = None
        if context.relative is not None:
            relative = self._relative(context.relative, x.shape[1], positions_key)
        attention = self.around(
            functools.partial(
                attend, rate=self.config.attention_probs_dropout_prob, key=weights_key,
                scores=Scores(self.config.scale), kernel=self.config.attention, relative=relative,
            )
        )  # fmt: skip
        out = self.output(attention(q, k, v, context.spans).reshape(x.shape))
        return self.residual(x, dropout(out, self.config.hidden_dropout_prob, keys[1]))

    def _relative(
        self, embeddings: Float[Array, "positions hidden"], length: int, key: DropoutKey
    ) -> Relative:
        """The embeddings of relative positions as this layer has them, for rows of a length."""
        places = self.config.positions(np.arange(1 - length, length + 1))
        first, last = int(places[0]), int(places[-1])
        # Only those of distances that the rows have are projected.
        used = dropout(embeddings, self.config.hidden_dropout_prob, key)[first : last + 1]
        own = not self.config.share_att_key
        keys = queries = None
        if self.config.by_query:
            projected = self._by_head((self.position_key if own else self.key)(used))
            keys = projected[self.config.positions(np.arange(length - 1, -length - 1, -1)) - first]
        if self.config.by_key:
            projected = self._by_head((self.position_query if own else self.query)(used))
            queries = projected[places - first]
        return Relative(keys, queries)

    def _by_head(
        self, x: Float[Array, "*lead hidden"], *lead: str
    ) -> Float[Array, "*lead heads size"]:
        heads = x.reshape(*x.shape[:-1], self.config.num_attention_heads, -1)
        between = [None] * (heads.ndim - 2 - len(lead))
        return constrain(heads, *lead, *between, "heads", None)


class Convolution(nnx.Module):
    """What stands beside the first layer: a convolution over an example's tokens, and the norm of the sum.

    Attributes:
      conv: whose windows are given one by one, so that none reaches into another example.
      norm: of the first layer's output with what this module gives.
    """

    def __init__(self, config: DebertaConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.conv = nnx.Conv(
            width, width, (config.conv_kernel_size,), padding="VALID",
            dtype=jnp.dtype(config.compute_dtype),
            kernel_init=nnx.initializers.normal(config.initializer_range),
            kernel_metadata=named(None, "embed", None), bias_metadata=named("width"), rngs=rngs,
        )  # fmt: skip
        self.norm = norm(config, width, config.layer_norm_eps, rngs)
        self.config = config

    def __call__(
        self, x: Float[Array, "rows length hidden"], spans: Spans, key: DropoutKey
    ) -> Float[Array, "rows length hidden"]:
        """What joins the first layer's output, from its input; `key` switches dropout on."""
        reach = self.config.conv_kernel_size // 2
        length = x.shape[1]
        columns = jnp.arange(length)
        padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
        windows = []
        for offset in range(-reach, reach + 1):
            inside = (columns + offset >= spans.first) & (columns + offset < spans.last)
            seen = padded[:, reach + offset : reach + offset + length]
            windows.append(jnp.where(inside[..., None], seen, 0))
        out = self.conv(jnp.stack(windows, axis=2))[:, :, 0]
        dropped = dropout(out, self.config.hidden_dropout_prob, key)
        result: Array = ACTIVATIONS[self.config.conv_act](dropped)
        return constrain(result, "batch", None, "width")


class DebertaBlock(Block):
    """A Transformer layer; to the output of the first one that of a convolution may be added."""

    def __init__(self, config: DebertaConfig, rngs: nnx.Rngs):
        super().__init__(Attention(config, rngs), FeedForward(config, rngs))
        self.reads_embeddings = config.conv_kernel_size > 0

    def __call__(
        self, x: Float[Array, "rows length width"], context: Context, *, key: DropoutKey = None
    ) -> Float[Array, "rows length width"]:
        """Runs the layer; `key` switches dropout on."""
        x = super().__call__(x, context, key=key)
        if context.beside is None:
            return x
        states, join, first = context.beside

        @jax.checkpoint  # the backward pass keeps x only, which it does in every layer
        def joined(x: Array) -> Array:
            added = lambda x: join(x + states)  # noqa: E731
            result: Array = jax.lax.cond(first, added, lambda x: x, x)
            return result

        output: Array = joined(x)
        return output
