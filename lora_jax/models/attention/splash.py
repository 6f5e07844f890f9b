"""Attention by JAX's kernel for TPUs, splash attention: blocks outside of the spans are left out.

The kernel takes a mask that is known when a program is traced, and numbers of segments. Which blocks it
computes it reads from arrays, though (its `MaskInfo`), and within a block it calls a function of a number
that each query has and of the column of a key. So spans are given to it as that number, and the blocks
follow from them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.models.attention.scores import Scores
from lora_jax.models.attention.spans import Spans

_LANES = 128  # blocks are multiples of it
# Kernels of models with such heads, which have long rows, are not computed again in the backward pass.
KEPT = _LANES
_BITS = 31  # of a number that is not negative


def fits(rows: int, length: int) -> bool:
    """Whether the kernel computes rows of a length: whole blocks, and columns that its numbers can hold.

    Args:
      rows: of one device.
      length: tokens of a row.
    """
    return length % _LANES == 0 and rows * length <= 2 ** (_BITS - length.bit_length())


def attend(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
    scores: Scores,
    *,
    interpret: bool = False,
) -> Float[Array, "rows length heads size"]:
    """Scaled dot-product attention; the backward pass keeps q, k and v.

    Of heads whose size is a multiple of `KEPT` it keeps the result and a number for each query, too.

    Args:
      q: queries.
      k: keys.
      v: values.
      spans: which tokens attend to which.
      scores: how products of queries and keys become scores.
      interpret: computes on any device what the kernel would, slowly.
    """
    # Experimental in JAX, and read only where it is used: the library does without it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info

    rows, length, _, size = q.shape
    block = next(b for b in (_block(length), 2 * _LANES, _LANES) if length % b == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    by_query, by_key, numbers = _blocks(spans, rows, block)
    infos = [
        info.MaskInfo(following, None, near, None, numbers)  # type: ignore[arg-type]
        for following, near in (by_query, by_query, by_key)
    ]
    sizes: Any = kernel.BlockSizes(**dict.fromkeys(names, block))  # type: ignore[arg-type]
    attention: Any = kernel.SplashAttentionKernel(
        *infos,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=scores.cap,
        residual_checkpoint_name=None,
        mask_function=_attended(length.bit_length()),
        interpret=interpret,
    )
    # All rows as one sequence: no row needs a call of its own.
    heads_first = lambda x: jnp.swapaxes(x.reshape(rows * length, -1, size), 0, 1)  # noqa: E731

    def compute(q: Array, k: Array, v: Array) -> Array:
        scaled = q * jnp.asarray(scores.of_size(size), q.dtype)
        mixed = attention(*map(heads_first, (scaled, k, v)))
        joined: Array = jnp.swapaxes(mixed, 0, 1).reshape(q.shape)
        return joined

    # What the kernel keeps of smaller heads would be padded to all lanes: it is computed again instead.
    mixed: Array = (jax.checkpoint(compute) if size % KEPT else compute)(q, k, v)
    return mixed


@functools.cache  # the kernel is compiled anew for another function
def _attended(bits: int) -> Callable[[Array, Array], Array]:
    """Whether the query of a number attends to the keys of columns; see `_blocks` for the numbers."""

    def attended(numbers: Array, columns: Array) -> Array:
        first, count = numbers >> bits, numbers & (2**bits - 1)
        inside: Array = (columns >= first) & (columns < first + count)
        return inside

    return attended


def _block(length: int) -> int:
    """Large blocks fill the matrix units, small ones leave out more of short rows."""
    return 4 * _LANES if length >= 16 * _LANES else 2 * _LANES


Blocks = tuple[Int[Array, "1 _ _"], Int[Array, "1 _ _"]]


def _blocks(spans: Spans, rows: int, block: int) -> tuple[Blocks, Blocks, Int[Array, " tokens"]]:
    """Which blocks are computed of all rows as one sequence.

    Returns:
      For every block of queries, the blocks of keys of its own row: which one is read, and whether it is
      computed. Then the same for every block of keys and the blocks of queries of its row, which lie on
      the axis before. A block that is not computed names its neighbour that is, so nothing is read for
      it. Then for every token the first column of its span and, in the low bits, the number of its tokens.
    """
    length = spans.first.shape[-1]
    own = length // block  # blocks of a row
    first, last = (jnp.broadcast_to(x, (rows, length)) for x in (spans.first, spans.last))
    lowest = first.reshape(rows, own, block).min(-1) // block
    behind = -(-last.reshape(rows, own, block).max(-1) // block)
    column = jnp.arange(own, dtype=jnp.int32)
    near = (lowest[..., None] <= column) & (column < behind[..., None])  # rows, queries, keys
    begin = own * jnp.arange(rows, dtype=jnp.int32)[:, None, None]  # first block of a row
    keys = begin + jnp.clip(column, lowest[..., None], behind[..., None] - 1)
    top = jnp.argmax(near, axis=1, keepdims=True)
    bottom = own - 1 - jnp.argmax(near[:, ::-1], axis=1, keepdims=True)
    queries = begin + jnp.clip(column[:, None], top, bottom)
    by_query = keys.reshape(1, -1, own), near.astype(jnp.int32).reshape(1, -1, own)
    of_keys = lambda x: jnp.moveaxis(x, 1, 0).reshape(1, own, -1).astype(jnp.int32)  # noqa: E731
    by_key = of_keys(queries), of_keys(near)
    bits = length.bit_length()
    begin = length * jnp.arange(rows, dtype=jnp.int32)[:, None]
    numbers = (begin + first) << bits | (last - first)
    return by_query, by_key, numbers.reshape(-1)
