"""Special tokens with trainable activations: prefix-embedding and prefix-layer tuning.

The paper's section 5.1 (Li and Liang 2021): `prefix` tokens go before every example, `infix` tokens
behind its input (before the completion a decoder writes; at the end of an encoder's text). They are
tokens like others, with ids from the vocabulary's size on, so attention, packing, positions, the loss
and cached decoding treat them rightly without knowing of them. The data gets them from
`Method.special`.

* PrefixEmbed: their word embeddings train.
* PrefixLayer: their activations train, at the input of every layer: those computed by the layer
  below (or by the embeddings) are replaced. What the last layer makes of them is not replaced: the
  first completion token is predicted from the last infix token, and with a replaced activation it
  would be the same for all inputs. So d (l_p + l_i) values per layer, as in the paper's formula.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from lora_jax import partition
from lora_jax.checks import integer, not_negative
from lora_jax.models.cache import KeysValues
from lora_jax.models.sublayer import Block, Context
from lora_jax.sharding.axes import named
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import Inserted, own_modules

Init = Literal["vocabulary", "normal"]


class Special(Inserted):
    """Trainable vectors of the special tokens.

    Attributes:
      embedding: (*stack, tokens, width).
      first: id of the first special token.
    """

    def __init__(self, embedding: Array, first: int):
        self.embedding = nnx.Param(embedding, **named(None, "width"))
        self.first = first

    def replace(
        self, x: Float[Array, "... width"], tokens: Int[Array, ...]
    ) -> Float[Array, "... width"]:
        """x with the vectors of special tokens in their places."""
        own = tokens - self.first
        # Converted after the lookup: the gradient's sums are float32.
        vectors = jnp.take(self.embedding[...], own, axis=0, mode="clip").astype(x.dtype)
        return jnp.where((own >= 0)[..., None], vectors, x)


class WithSpecialTokens(nnx.Embed):
    """An embedding whose ids go on behind the vocabulary; `attend` keeps to the vocabulary."""

    special: Special

    def __call__(
        self, inputs: Int[Array, ...], *args: Any, **kwargs: Any
    ) -> Float[Array, "... features"]:
        """Embeds ids below and from `num_embeddings` on."""
        x = super().__call__(jnp.minimum(inputs, self.num_embeddings - 1), *args, **kwargs)
        return self.special.replace(x, inputs)


class TolerantEmbed(nnx.Embed):
    """An embedding that takes special tokens; what it gives for them is replaced later."""

    def __call__(
        self, inputs: Int[Array, ...], *args: Any, **kwargs: Any
    ) -> Float[Array, "... features"]:
        """Embeds ids; those behind the vocabulary get some row."""
        return super().__call__(jnp.minimum(inputs, self.num_embeddings - 1), *args, **kwargs)


class Replacing(Block):
    """Mixin: a block whose inputs at special tokens are trainable vectors."""

    special: Special

    def __call__(self, x: Array, context: Context, *, key: Array | None = None) -> Array:
        """As the block."""
        return super().__call__(self.special.replace(x, context.tokens), context, key=key)

    def prefill(self, x: Array, context: Context) -> tuple[Array, KeysValues]:
        """Runs the block on prompts. Generated tokens are never special: `decode_step` stays as it is."""
        return super().prefill(self.special.replace(x, context.tokens), context)


@functools.cache  # one class per base: equal models have equal graph definitions
def _replacing(base: Any) -> Any:
    return type(base)(f"Replacing{base.__name__}", (Replacing, base), {})


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What both insertions have in common.

    Attributes:
      prefix, infix: numbers of tokens, l_p and l_i in the paper.
      tokens: regular expression for the path of the word embedding, an `nnx.Embed`.
      std: standard deviation of normal initial values.
    """

    prefix: int
    infix: int
    tokens: str
    std: float

    def __post_init__(self) -> None:
        for name in ("prefix", "infix"):
            integer(name, getattr(self, name), least=0)
        not_negative("std", self.std)
        if not self.prefix + self.infix:
            raise ValueError("prefix and infix are both 0: there is nothing to train")

    @property
    def special(self) -> tuple[int, int]:
        """Numbers of prefix and infix tokens that the data must have."""
        return self.prefix, self.infix

    def _embedding(self, model: nnx.Module) -> tuple[str, Any]:
        modules = own_modules(model)
        found = {p: m for p, m in modules.items() if re.fullmatch(self.tokens, p)}
        if not found:
            raise partition.no_match_error("word embedding", self.tokens, list(modules))
        (path, module), *others = found.items()
        if others:
            raise ValueError(f"{self.tokens!r} names several modules, {sorted(found)}: name one")
        return path, module

    def _turn(self, model: nnx.Module, form: type) -> tuple[str, Any]:
        """Gives the word embedding another class."""
        path, module = self._embedding(model)
        if type(module) is not nnx.Embed:
            raise TypeError(
                f"{path} is a {type(module).__module__}.{type(module).__name__}; special tokens need "
                "a plain nnx.Embed, without an update or special tokens of another method"
            )
        object.__setattr__(module, "__class__", form)
        return path, module


@dataclasses.dataclass(frozen=True)
class PrefixEmbedInsertion(SpecialTokens):
    """Prefix-embedding tuning; `init`: rows of the vocabulary, or N(0, std^2)."""

    init: Init = "vocabulary"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("vocabulary", "normal"):
            raise ValueError(f"init must be 'vocabulary' or 'normal', got {self.init!r}")

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Extends the word embedding, in place."""
        _, module = self._turn(model, WithSpecialTokens)
        count = self.prefix + self.infix
        if self.init == "vocabulary":
            rows = jax.random.randint(key, (count,), 0, module.num_embeddings)
            vectors = module.embedding[...][rows].astype(jnp.float32)
        else:
            vectors = self.std * jax.random.normal(key, (count, module.features), jnp.float32)
        module.special = Special(vectors, module.num_embeddings)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """The word embedding."""
        path, module = self._embedding(model)
        return [_row(self, path, module.special)]


@dataclasses.dataclass(frozen=True)
class PrefixLayerInsertion(SpecialTokens):
    """Prefix-layer tuning: vectors N(0, std^2) at the input of every `Block`."""

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Adds the vectors to the blocks, in place."""
        blocks = _blocks(model)
        if not blocks:
            raise TypeError(
                f"the {type(model).__name__} holds no lora_jax.models.sublayer.Block whose "
                "activations could be replaced; prefix_embed works with any nnx.Embed"
            )
        _, embedding = self._turn(model, TolerantEmbed)
        for path, block in blocks.items():
            *stack, width = block.attention.norm.scale.shape
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            shape = (*stack, self.prefix + self.infix, width)
            vectors = self.std * jax.random.normal(own, shape, jnp.float32)
            block.special = Special(vectors, embedding.num_embeddings)
            base: Any = type(block)
            object.__setattr__(block, "__class__", _replacing(base))

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """The blocks."""
        return [_row(self, path, block.special) for path, block in _blocks(model).items()]


def _blocks(model: nnx.Module) -> dict[str, Any]:
    return {path: m for path, m in own_modules(model).items() if isinstance(m, Block)}


def _row(insertion: SpecialTokens, path: str, special: Special) -> MatchedLayer:
    how = f"{insertion.prefix} prefix and {insertion.infix} infix tokens"
    shape = special.embedding.shape
    return MatchedLayer(insertion.tokens, path, shape, how, special.embedding.size)
