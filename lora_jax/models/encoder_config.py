"""Sizes and settings of BERT, RoBERTa and the encoders that are one of them in other names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from lora_jax.errors import InputError
from lora_jax.models import ranges
from lora_jax.models.activations import Activation
from lora_jax.models.attention.attend import Kernel, check_kernel
from lora_jax.models.parts import check_base_format, check_compute_dtype
from lora_jax.models.stack import Remat
from lora_jax.ranges import Range, Whole

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
    def table_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size

    @property
    def has_pooler(self) -> bool:
        """Whether a pre-trained dense layer stands below the head."""
        return self.architecture == "bert"

    @property
    def head_dropout(self) -> float:
        """Dropout rate of the head."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    @property
    def head_rates(self) -> tuple[float, float]:
        """Dropout rates before a head's dense layer, and before its output layer."""
        return self.head_dropout, self.head_dropout

    @property
    def head_activation(self) -> Activation:
        """Activation of a head's dense layer."""
        return "tanh"


@dataclasses.dataclass(frozen=True)
class ElectraConfig(EncoderConfig):
    """Sizes and settings of an ELECTRA (Clark et al. 2020, arXiv:2003.10555), a BERT without a pooler.

    `embedding_size` is the width of the tables, from which a linear layer leads to that of the model where
    the two differ. The head is RoBERTa's with GELU. See `EncoderConfig` for the other fields.

    Raises:
      ValueError: as `EncoderConfig`.
    """

    names: ClassVar[tuple[str, ...]] = ("electra",)
    allowed: ClassVar[Mapping[str, Range]] = {**RANGES, "embedding_size": ranges.WIDTH}

    architecture: str = "electra"
    _: dataclasses.KW_ONLY
    embedding_size: int = 128

    @property
    def table_width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding_size

    @property
    def head_activation(self) -> Activation:
        """Activation of a head's dense layer."""
        return "gelu"


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(EncoderConfig):
    """Sizes and settings of a DistilBERT (Sanh et al. 2019, arXiv:1910.01108).

    It is a BERT without token types and without a pooler. Its head is a dense layer with ReLU and an output
    layer, and drops out only before the latter (`classifier_dropout`, in config.json `seq_classif_dropout`).
    See `EncoderConfig` for the other fields.

    Raises:
      ValueError: as `EncoderConfig`.
    """

    names: ClassVar[tuple[str, ...]] = ("distilbert",)
    allowed: ClassVar[Mapping[str, Range]] = {**RANGES, "type_vocab_size": Whole(least=0, most=0)}

    architecture: str = "distilbert"
    _: dataclasses.KW_ONLY
    type_vocab_size: int = 0
    classifier_dropout: float | None = 0.2

    @property
    def head_rates(self) -> tuple[float, float]:
        """Dropout rates before a head's dense layer, and before its output layer."""
        return 0.0, self.head_dropout

    @property
    def head_activation(self) -> Activation:
        """Activation of a head's dense layer."""
        return "relu"


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
