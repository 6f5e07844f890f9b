"""BERT and RoBERTa encoders with a classification or regression head.

Both are post-norm Transformer encoders (Devlin et al. 2019; Liu et al. 2019); they differ in where
positions start and in the head. Batches are packed: several examples share a row, attention stays
inside the segment of each, and the logits are those of the unpacked examples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.data.batch import Inputs
from lora_jax.dropout import DropoutKey, dropout, split_key
from lora_jax.errors import InputError
from lora_jax.models import ranges
from lora_jax.models.attention.attend import Kernel, attend, check_kernel
from lora_jax.models.attention.spans import of_segments
from lora_jax.models.parts import check_base_format, check_compute_dtype, linear, norm, table
from lora_jax.models.stack import Remat, Stack
from lora_jax.models.sublayer import (
    AttentionSublayer,
    Block,
    Context,
    FeedForwardSublayer,
    PostNorm,
)
from lora_jax.ranges import Range
from lora_jax.sharding.axes import constrain, named

# Of the fields that config.json has, see `EncoderConfig`.
RANGES: Mapping[str, Range] = {
    "vocab_size": ranges.ROWS,
    "hidden_size": ranges.WIDTH,
    "num_hidden_layers": ranges.DEPTH,
    "num_attention_heads": ranges.WIDTH,
    "intermediate_size": ranges.INNER,
    "max_position_embeddings": ranges.ROWS,
    "type_vocab_size": ranges.ROWS,
    "layer_norm_eps": ranges.EPSILON,
    "hidden_dropout_prob": ranges.RATE,
    "attention_probs_dropout_prob": ranges.RATE,
    "classifier_dropout": ranges.OPTIONAL_RATE,
    "initializer_range": ranges.SPREAD,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and settings of an encoder; the names follow Hugging Face's config.json.

    `position_offset` is the index of the first position: 0 for BERT, padding index + 1 = 2 for
    RoBERTa. `classifier_dropout` is the rate of the head; without it that is `hidden_dropout_prob`.
    `unroll` and `remat` say how the stack runs, see `Stack`; `compute_dtype` is the type of
    activations and matrix products below the head, whatever type the parameters have; `base_format` is
    the form of the matrices when the model is read, see `base_formats`; `attention` says by whom attention
    is computed, see `attend`.

    Raises:
      ValueError: a size or rate is out of its range, the heads do not divide the width, positions
        begin behind their table, or the architecture or the type is unknown.
    """

    names: ClassVar[tuple[str, ...]] = ("bert", "roberta", "xlm-roberta", "camembert")
    allowed: ClassVar[Mapping[str, Range]] = RANGES

    architecture: str
    _: dataclasses.KW_ONLY
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    initializer_range: float = 0.02
    position_offset: int = 0
    unroll: int = 1
    remat: Remat = "none"
    compute_dtype: str = "float32"
    base_format: str = "float"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_base_format(self.base_format)
        check_kernel(self, "attention_probs_dropout_prob")
        if self.architecture not in self.names:
            known = " or ".join(map(repr, self.names))
            raise InputError(f"architecture must be {known}, got {self.architecture!r}")
        ranges.check(self, self.allowed)
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if not 0 <= self.position_offset < self.max_position_embeddings:
            raise InputError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position, as the "
                f"first one is {self.position_offset} (pad_token_id + 1 in RoBERTa)"
            )

    @property
    def max_length(self) -> int:
        """Tokens of the longest example that has position embeddings."""
        return self.max_position_embeddings - self.position_offset

    @property
    def width(self) -> int:
        """Values of an activation."""
        return self.hidden_size

    @property
    def depth(self) -> int:
        """Number of Transformer layers."""
        return self.num_hidden_layers

    @property
    def heads(self) -> int:
        """Number of attention heads of a layer."""
        return self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        """Dropout rate of the head."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate


def _roberta(hidden: int, layers: int, heads: int) -> EncoderConfig:
    return EncoderConfig(
        "roberta",
        vocab_size=50265,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        position_offset=2,
    )


# The RoBERTa models of the paper's Table 2.
SIZES = {"roberta-base": _roberta(768, 12, 12), "roberta-large": _roberta(1024, 24, 16)}


@jax.checkpoint  # the backward pass keeps x only
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU by the error function, as in BERT; `jax.nn.gelu` uses the slower erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def head_linear(config: EncoderConfig, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer of a head, which always computes in float32: it is small."""
    normal = nnx.initializers.normal(config.initializer_range)
    axes = named("embed", None)
    return nnx.Linear(
        config.hidden_size, outputs, kernel_init=normal, kernel_metadata=axes, rngs=rngs
    )


class Embeddings(nnx.Module):
    """The sum of word, position and token type embeddings, then LayerNorm and dropout."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.word = table(config, config.vocab_size, width, rngs, "vocabulary")
        self.position = table(config, config.max_position_embeddings, width, rngs)
        self.token_type = table(config, config.type_vocab_size, width, rngs)
        self.norm = norm(config, config.hidden_size, config.layer_norm_eps, rngs)
        self.config = config

    def __call__(self, inputs: Inputs, key: DropoutKey) -> Float[Array, "rows length hidden"]:
        """Embeds a batch; `key` switches dropout on."""
        tokens, _, positions, types = (jnp.asarray(field) for field in inputs)
        rows = (
            self.word(tokens),
            self.token_type(types),
            self.position(positions + self.config.position_offset),
        )
        word, kind, place = (part.astype(jnp.float32) for part in rows)
        x = self.norm(word + kind + place)
        return dropout(x, self.config.hidden_dropout_prob, key)


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


class RobertaHead(nnx.Module):
    """Dropout, dense layer, tanh, dropout, output layer; all new for a task (fairseq's head)."""

    def __init__(self, config: EncoderConfig, num_outputs: int, rngs: nnx.Rngs):
        self.dense = head_linear(config, config.hidden_size, rngs)
        self.output = head_linear(config, num_outputs, rngs)
        self.rate = config.head_dropout

    def __call__(self, x: Float[Array, "n hidden"], key: DropoutKey) -> Float[Array, "n outputs"]:
        """Logits from the hidden states of the classification tokens."""
        keys = split_key(key, 2)
        x = jnp.tanh(self.dense(dropout(x, self.rate, keys[0])))
        return self.output(dropout(x, self.rate, keys[1]))


class BertHead(nnx.Module):
    """Dropout and output layer: what is new for a task on top of BERT's pre-trained pooler."""

    def __init__(self, config: EncoderConfig, num_outputs: int, rngs: nnx.Rngs):
        self.output = head_linear(config, num_outputs, rngs)
        self.rate = config.head_dropout

    def __call__(self, x: Float[Array, "n hidden"], key: DropoutKey) -> Float[Array, "n outputs"]:
        """Logits from the pooled states."""
        return self.output(dropout(x, self.rate, key))


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
        if config.architecture == "bert":
            self.pooler = head_linear(config, config.hidden_size, rngs)
            self.head = BertHead(config, num_outputs, rngs)
        else:
            self.head = RobertaHead(config, num_outputs, rngs)
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
        if self.config.architecture == "bert":
            first = jnp.tanh(self.pooler(first))
        logits: Array = self.head(first, keys[1]).astype(jnp.float32)
        return logits
