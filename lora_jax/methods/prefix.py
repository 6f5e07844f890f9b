"""Special tokens with trainable activations: prefix-embedding and prefix-layer tuning.

The paper's section 5.1 (Li and Liang 2021): `prefix` tokens go before every example, `infix` tokens
behind its input (before the completion a decoder writes; at the end of an encoder's text). They are
tokens like others, with ids from the vocabulary's size on, so attention, packing, positions, the loss
and cached decoding treat them rightly without knowing of them. The data gets them from
`Method.special_tokens`.

* PrefixEmbed: their word embeddings train.
* PrefixLayer: their activations train, at the input of every layer: those computed by the layer
  below (or by the embeddings) are replaced. What the last layer makes of them is not replaced: the
  first completion token is predicted from the last infix token, and with a replaced activation it
  would be the same for all inputs. So d (l_p + l_i) values per layer, as in the paper's formula.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import patterns, surgery
from lora_jax.checks import WIDEST, Integer, Real, integer, not_negative, one_of
from lora_jax.errors import InputError, InputTypeError
from lora_jax.method import Insertion, Method
from lora_jax.methods import common
from lora_jax.methods.prefix_layers import (
    Replacing,
    SpecialVectors,
    TolerantEmbed,
    WithSpecialTokens,
)
from lora_jax.models.sublayer import Block
from lora_jax.partition import Rule
from lora_jax.quantisation.layers import refuse_packed
from lora_jax.summary import MatchedLayer

Init = Literal["vocabulary", "normal"]
MOST_TOKENS = 2**14  # before or behind the input of every example
_RULE = Rule(".*", "prefix", inserted="special")


@dataclasses.dataclass(frozen=True)
class SpecialTokensInsertion(Insertion):
    """What both insertions have in common.

    Attributes:
      prefix, infix: numbers of tokens, l_p and l_i in the paper.
      tokens: regular expression for the path of the word embedding, an `nnx.Embed`.
      std: standard deviation of normal initial values.
    """

    prefix: Integer
    infix: Integer
    tokens: str
    std: Real

    def __post_init__(self) -> None:
        for name in ("prefix", "infix"):
            integer(name, getattr(self, name), least=0, most=MOST_TOKENS)
        not_negative("std", self.std, WIDEST)
        patterns.check(self.tokens, "word embedding", names=True)
        if not self.prefix + self.infix:
            raise InputError("prefix and infix are both 0: there is nothing to train")

    @property
    def special_tokens(self) -> tuple[int, int]:
        """Numbers of prefix and infix tokens that the data must have."""
        return int(self.prefix), int(self.infix)

    def _embedding(self, model: nnx.Module) -> tuple[str, Any]:
        found = common.matching(model, self.tokens, "word embedding")
        (path, module), *others = found.items()
        if others:
            raise InputError(f"{self.tokens!r} names several modules, {sorted(found)}: name one")
        return path, module

    def _change_embedding(self, model: nnx.Module, changed: type[nnx.Embed]) -> tuple[str, Any]:
        """Gives the word embedding another class."""
        path, module = self._embedding(model)
        refuse_packed(module, path, "a method with special tokens")
        if type(module) is not nnx.Embed:
            raise InputTypeError(
                f"{path} is a {type(module).__module__}.{type(module).__name__}; special tokens need "
                "a plain nnx.Embed, without an update or special tokens of another method"
            )
        surgery.become(module, changed)
        return path, module


@dataclasses.dataclass(frozen=True)
class PrefixEmbedInsertion(SpecialTokensInsertion):
    """Prefix-embedding tuning; `init`: rows of the vocabulary, or N(0, std^2)."""

    init: Init = "vocabulary"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("init", self.init, get_args(Init))

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Extends the word embedding, in place."""
        _, module = self._change_embedding(model, WithSpecialTokens)
        count = self.prefix + self.infix
        if self.init == "vocabulary":
            rows = jax.random.randint(key, (count,), 0, module.num_embeddings)
            vectors = module.embedding[...][rows].astype(jnp.float32)
        else:
            vectors = self.std * jax.random.normal(key, (count, module.features), jnp.float32)
        module.special = SpecialVectors(vectors, module.num_embeddings)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """The word embedding."""
        path, module = self._embedding(model)
        return [_row(self, path, module.special)]


@dataclasses.dataclass(frozen=True)
class PrefixLayerInsertion(SpecialTokensInsertion):
    """Prefix-layer tuning: vectors N(0, std^2) at the input of every `Block`."""

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Adds the vectors to the blocks, in place."""
        blocks = _blocks(model)
        if not blocks:
            raise InputTypeError(
                f"the {type(model).__name__} holds no lora_jax.models.sublayer.Block whose "
                "activations could be replaced; prefix_embed works with any nnx.Embed"
            )
        if any(block.reads_embeddings for block in blocks.values()):
            raise InputTypeError(
                f"the first layer of the {type(model).__name__} has a convolution over the embeddings beside "
                "it, which replaced activations would not reach; prefix_embed works with it"
            )
        _, embedding = self._change_embedding(model, TolerantEmbed)
        for path, block in blocks.items():
            *stack, width = block.attention.norm.scale.shape
            block_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            shape = (*stack, self.prefix + self.infix, width)
            vectors = self.std * jax.random.normal(block_key, shape, jnp.float32)
            block.special = SpecialVectors(vectors, embedding.num_embeddings)
            surgery.become(block, surgery.extended(Replacing, block.__class__))

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """The blocks."""
        return [_row(self, path, block.special) for path, block in _blocks(model).items()]


def _blocks(model: nnx.Module) -> dict[str, Any]:
    return {
        path: m for path, m in surgery.pretrained_modules(model).items() if isinstance(m, Block)
    }


def _row(insertion: SpecialTokensInsertion, path: str, special: SpecialVectors) -> MatchedLayer:
    how = f"{insertion.prefix} prefix and {insertion.infix} infix tokens"
    shape = special.embedding.shape
    return MatchedLayer(
        rule=insertion.tokens, path=path, shape=shape, how=how, parameters=special.embedding.size
    )


def prefix_embed(
    prefix: Integer,
    infix: Integer = 0,
    *,
    init: Init = "vocabulary",
    std: Real = 0.02,
    tokens: str = common.EMBEDDING,
    head: str | None = None,
) -> Method:
    """Prefix-embedding tuning (paper, section 5.1): special tokens' embeddings. Group: `prefix`.

    Args:
      prefix: tokens before every example (l_p).
      infix: tokens behind its input (l_i). The data must have both, see `Method.special_tokens`.
      init: rows of the vocabulary at random, or `normal`; the paper does not say.
      std: of `normal`.
      tokens: path of the word embedding.
      head: regular expression for the task head's leaves.
    """
    insertion = PrefixEmbedInsertion(prefix, infix, tokens, std, init)
    arguments = {
        "prefix": prefix, "infix": infix, "init": init, "std": std, "tokens": tokens, "head": head
    }  # fmt: skip
    return common.method("prefix_embed", arguments, (insertion,), _RULE)


def prefix_layer(
    prefix: Integer,
    infix: Integer = 0,
    *,
    std: Real = 0.02,
    tokens: str = common.EMBEDDING,
    head: str | None = None,
) -> Method:
    """Prefix-layer tuning (paper, section 5.1): special tokens' activations in every layer.

    Group: `prefix`. Arguments as in `prefix_embed`; initial values are N(0, std^2).
    """
    insertion = PrefixLayerInsertion(prefix, infix, tokens, std)
    arguments = {"prefix": prefix, "infix": infix, "std": std, "tokens": tokens, "head": head}
    return common.method("prefix_layer", arguments, (insertion,), _RULE)
