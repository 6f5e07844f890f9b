"""Which tokens each token attends to: always some that lie side by side."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spans:
    """For each token the first one that it attends to, and the one behind the last.

    This says for examples that share a row, causal models and sliding windows what a mask says that is
    `length` times as large; kernels take it as it is, and leave out what lies outside.

    Where the layers of a model differ, the arrays have a first axis of the kinds of layers.

    Attributes:
      first: column of the first token; no later token of the row has an earlier one.
      last: column behind the last token; no later token of the row has an earlier one.
      causal: whether `last` is the column behind the token itself.
      windowed: whether `first` may be later than the first token of the example.
    """

    first: Int[Array, "*kinds #rows length"]
    last: Int[Array, "*kinds #rows length"]
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    windowed: bool = dataclasses.field(default=False, metadata={"static": True})

    def mask(self) -> Bool[Array, "*kinds #rows length length"]:
        """True where the token on the last axis but one attends to the token on the last."""
        columns = jnp.arange(self.first.shape[-1], dtype=jnp.int32)
        return (columns >= self.first[..., None]) & (columns < self.last[..., None])

    def within(self, window: int | None) -> Spans:
        """Those of a layer whose tokens attend to the last `window` tokens, themselves included."""
        if window is None:
            return self
        columns = jnp.arange(self.first.shape[-1], dtype=jnp.int32)
        first = jnp.maximum(self.first, columns - (window - 1))
        return dataclasses.replace(self, first=first, windowed=True)


def of_segments(segments: Int[Array, "#rows length"], *, causal: bool) -> Spans:
    """The spans of packed rows: tokens attend to their own segment, in causal models not to later tokens.

    Args:
      segments: numbers; the tokens of a segment lie side by side.
      causal: whether the model is.
    """
    columns = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    border = segments[:, 1:] != segments[:, :-1]
    edge = jnp.ones((len(segments), 1), bool)
    first = jax.lax.cummax(jnp.where(jnp.hstack([edge, border]), columns, 0), axis=1)
    if causal:
        return Spans(first, columns + 1, causal=True)
    ends = jnp.where(jnp.hstack([border, edge]), columns + 1, segments.shape[1])
    return Spans(first, jax.lax.cummin(ends, axis=1, reverse=True))


def of_kinds(kinds: list[Spans]) -> Spans:
    """The spans of a model whose layers are of several kinds, with an axis of kinds in front."""
    first, last = (jnp.stack([getattr(s, name) for s in kinds]) for name in ("first", "last"))
    causal, windowed = all(s.causal for s in kinds), any(s.windowed for s in kinds)
    return Spans(first, last, causal=causal, windowed=windowed)
