"""Sizes and settings of DeBERTa v2 and v3 (He et al. 2021, arXiv:2006.03654 and 2111.09543)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from lora_jax.errors import InputError
from lora_jax.models import encoder_config, ranges
from lora_jax.models.activations import ACTIVATIONS, Activation
from lora_jax.models.attention.attend import PLATFORMS
from lora_jax.models.attention.relative import buckets
from lora_jax.models.encoder_config import EncoderConfig
from lora_jax.ranges import Flag, OneOf, OrNone, Range, Several, Whole

CONTENT_TO_POSITION, POSITION_TO_CONTENT = "c2p", "p2c"
LAYER_NORM, NO_NORM = "layer_norm", "none"
_COUNT = Whole(least=-1, most=ranges.ROWS.most)

# Of the fields that config.json has, see `DebertaConfig`.
RANGES: Mapping[str, Range] = {
    **encoder_config.RANGES,
    "type_vocab_size": Whole(least=0, most=ranges.ROWS.most),
    "embedding_size": OrNone(of=ranges.WIDTH, none="the model's width"),
    "relative_attention": Flag(),
    "max_relative_positions": _COUNT,
    "position_buckets": _COUNT,
    "pos_att_type": Several(
        of=OneOf((CONTENT_TO_POSITION, POSITION_TO_CONTENT)), empty="no position in scores"
    ),
    "share_att_key": Flag(),
    "norm_rel_ebd": OneOf((NO_NORM, LAYER_NORM)),
    "position_biased_input": Flag(),
    "conv_kernel_size": Whole(least=0, most=255),
    "conv_act": OneOf(tuple(ACTIVATIONS)),
    "pooler_dropout": ranges.RATE,
    "pooler_hidden_act": OneOf(tuple(ACTIVATIONS)),
}


@dataclasses.dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """Sizes and settings of a DeBERTa; the names follow Hugging Face's config.json.

    `embedding_size` is the width of the tables where it is another one. With `relative_attention` there are
    embeddings of relative positions, of `position_buckets` on each side or, if that is not positive, of
    `max_relative_positions` distances (`max_position_embeddings` if that is not positive), and
    `norm_rel_ebd` says whether they are normalised. `pos_att_type` says what they are multiplied with, "c2p"
    with queries and "p2c" with keys, and `share_att_key` whether the layer's projections of keys and queries
    serve them too.
    `position_biased_input` adds embeddings of positions to those of words. With a `conv_kernel_size` a
    convolution stands beside the first layer. `classifier_dropout` is `cls_dropout` there; see
    `EncoderConfig` for the other fields.

    Raises:
      ValueError: as `EncoderConfig`; or the buckets leave no distance that is shared, the kernel has an even
        size, or a kernel for attention is asked for that has no relative positions.
    """

    names: ClassVar[tuple[str, ...]] = ("deberta-v2",)
    allowed: ClassVar[Mapping[str, Range]] = RANGES

    architecture: str = "deberta-v2"
    _: dataclasses.KW_ONLY
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    embedding_size: int | None = None
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = NO_NORM
    position_biased_input: bool = True
    conv_kernel_size: int = 0
    conv_act: Activation = "tanh"
    pooler_dropout: float = 0.0
    pooler_hidden_act: Activation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        near = self.position_buckets // 2
        if self.position_buckets > 0 and not 0 < near < self.longest - 1:
            raise InputError(
                f"position_buckets {self.position_buckets} must be from 2 on, and half of it below "
                f"{self.longest - 1}, the longest distance (max_relative_positions less 1)"
            )
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise InputError(
                f"conv_kernel_size must be odd, or 0 for no convolution; got {self.conv_kernel_size}"
            )
        if self.relative_attention and self.attention in PLATFORMS:
            raise InputError(
                f"attention {self.attention!r} has no relative positions (relative_attention); set "
                "attention 'auto' or 'xla'"
            )

    @property
    def table_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def head_rates(self) -> tuple[float, float]:
        """Dropout rates before a head's dense layer, and before its output layer."""
        return self.pooler_dropout, self.head_dropout

    @property
    def head_activation(self) -> Activation:
        """Activation of a head's dense layer."""
        return self.pooler_hidden_act

    @property
    def longest(self) -> int:
        """Distance from which on all are as one."""
        given = self.max_relative_positions
        return given if given > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Number of embeddings of relative positions on each side."""
        return self.position_buckets if self.position_buckets > 0 else self.longest

    @property
    def by_query(self) -> bool:
        """Whether queries are multiplied with the embeddings of positions."""
        return self.relative_attention and CONTENT_TO_POSITION in self.pos_att_type

    @property
    def by_key(self) -> bool:
        """Whether keys are."""
        return self.relative_attention and POSITION_TO_CONTENT in self.pos_att_type

    @property
    def scale(self) -> float:
        """Factor of the scores, which are a sum of one product more than `pos_att_type` names."""
        size = self.hidden_size // self.num_attention_heads
        return float((size * (1 + len(self.pos_att_type))) ** -0.5)

    def positions(self, distances: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """The rows of the table of relative positions for distances of queries from keys."""
        numbers: Int[np.ndarray, "*shape"] = distances
        if self.position_buckets > 0:
            numbers = buckets(distances, self.position_buckets, self.longest)
        rows: Int[np.ndarray, "*shape"] = np.clip(numbers + self.span, 0, 2 * self.span - 1)
        return rows


def _v2(hidden: int, layers: int, heads: int) -> DebertaConfig:
    """Of the files experiments/language_model/*.json of microsoft/DeBERTa."""
    return DebertaConfig(
        vocab_size=128100,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=512,
        relative_attention=True,
        position_buckets=256,
        pos_att_type=("p2c", "c2p"),
        share_att_key=True,
        norm_rel_ebd=LAYER_NORM,
        position_biased_input=False,
        conv_kernel_size=3,
        conv_act="gelu",
    )


# The DeBERTa of the paper's Table 2.
SIZES = {"deberta-v2-xxlarge": _v2(1536, 48, 24)}
