"""The factors of all slots side by side: one product with all A, one with all B, and zeros in between.

    x [A_1 ... A_n]  ->  the columns of other slots than the token's own become 0  ->  [B_1; ...; B_n]

TPUs multiply by factors that stand still, for all tokens at once, far faster than they copy those of each row
together. 0 x NaN would be NaN, so every B has to be finite: where an adapter's is not, the pool
keeps zeros there and NaN in its A (`finite_b`), which reaches the tokens of that slot only.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int

from lora_jax.low_rank.kinds import TwoProducts
from lora_jax.low_rank.weights import LayerWithWeight

# By what XLA's compilers make of layers of 2,048 to 4,096 (benchmarks/pool_forms.py, docs/measured.md): on
# TPUs, with few tokens in a row or few columns, side by side needs the least; on GPUs rows do, whose factors
# are gathered inside of the products. Tokens in tiles need more than either as long as columns are few.
_FEW_TOKENS = 16
_FEW_COLUMNS = 512
_FEW_COLUMNS_BY_TOKEN = 2048


def possible(layer: LayerWithWeight) -> bool:
    """Whether a layer is one map of tokens by themselves, by the two products of its kind."""
    as_its_kind = type(layer).low_rank_output is TwoProducts.low_rank_output
    return as_its_kind and layer.by_token() and not layer.roles().batch


def less_work(columns: int, tokens_of_a_row: int, *, by_token: bool) -> bool:
    """Whether a TPU, and by token a GPU too, needs less time than with factors that are gathered.

    Args:
      columns: slots times rank.
      tokens_of_a_row: that share a slot.
      by_token: whether every token has a slot of its own.
    """
    if by_token:
        return columns <= _FEW_COLUMNS_BY_TOKEN
    return tokens_of_a_row <= _FEW_TOKENS or columns <= _FEW_COLUMNS


def all_a(a: Inexact[Array, "slots *inputs rank"]) -> Inexact[Array, "*inputs columns"]:
    """The A of all slots as one."""
    first = jnp.moveaxis(a, 0, -2)
    return first.reshape(*first.shape[:-2], -1)


def all_b(b: Inexact[Array, "slots rank *outputs"]) -> Inexact[Array, " columns *outputs"]:
    """The B of all slots as one."""
    return b.reshape(-1, *b.shape[2:])


def own_columns(
    low: Inexact[Array, "*tokens columns"], slots: Int[Array, "*lead"], count: int
) -> Inexact[Array, "*tokens columns"]:
    """The products with all A, with zeros in the columns of other slots than each token's own.

    Args:
      low: (*lead, ..., slots * rank).
      slots: of every row or token.
      count: number of slots.
    """
    own: Bool[Array, ...] = slots[..., None] == jnp.arange(count)
    own = own.reshape(*slots.shape, *[1] * (low.ndim - 1 - slots.ndim), count, 1)
    rank = low.shape[-1] // count
    return jnp.where(own, low.reshape(*low.shape[:-1], count, rank), 0).reshape(low.shape)


def in_type(b: Inexact[Array, ...], dtype: jnp.dtype) -> Inexact[Array, ...]:
    """B in another type, whose largest number stands for larger ones: infinity x 0 would be NaN."""
    largest = jnp.finfo(dtype).max
    narrow = float(largest) < float(jnp.finfo(b.dtype).max)
    return (jnp.clip(b, -largest, largest) if narrow else b).astype(dtype)


def finite_b(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A pair whose B is finite in a type; one whose B is not gets NaN for its A, and gives NaN as before."""
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(b.astype(dtype))
    if not bad.any():
        return a, b
    return np.full_like(a, np.nan), np.where(bad, 0, b).astype(b.dtype)
