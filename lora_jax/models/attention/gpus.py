"""Attention by kernels for GPUs: JAX's own in Triton, and cuDNN's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.data.packing import TOKENS_PER_SEGMENT
from lora_jax.models.attention.scores import Scores
from lora_jax.models.attention.spans import Spans
from lora_jax.models.attention.splash import KEPT

_TRITON_BLOCK = 128
# The kernel pads a head to a power of two; one of 256 takes 225 KiB of shared memory, an RTX 4090 has 99, an
# A100 163.
_TRITON_SIZE = 128
_PACKED = "9.0"  # compute capability from which cuDNN takes packed rows


def triton_fits(length: int, size: int, spans: Spans, scores: Scores) -> bool:
    """Whether JAX's kernel has all that is asked for: no window, no cap, whole blocks, heads of a size.

    Args:
      length: tokens of a row.
      size: of a head.
      spans: which tokens attend to which.
      scores: how products of queries and keys become scores.
    """
    whole = length % _TRITON_BLOCK == 0 and size <= _TRITON_SIZE
    return whole and not spans.windowed and scores.cap is None


def triton(
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
      spans: which tokens attend to which, without windows.
      scores: how products of queries and keys become scores.
      interpret: computes on any device what the kernel would, slowly.
    """
    # Experimental in JAX, and read only where it is used: the library does without it.
    from jax.experimental.pallas.ops.gpu import attention as of_jax

    settings = {"sm_scale": scores.of_size(q.shape[3]), "causal": spans.causal}

    def compute(q: Array, k: Array, v: Array, segments: Array) -> Array:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        mixed: Array = of_jax.mha(q, k, v, segments, **settings, interpret=interpret)
        return mixed

    # The first token of its segment is a segment's number. Keys and values are not kept once for each head.
    segments = jnp.broadcast_to(spans.first, q.shape[:2])
    policy = _of_kernels if q.shape[3] % KEPT == 0 else None
    mixed: Array = jax.checkpoint(compute, policy=policy)(q, k, v, segments)
    return mixed


def _of_kernels(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether the backward pass keeps what an operation gives: that of kernels only."""
    return str(primitive.name) in ("pallas_call", "custom_vjp_call")


def cudnn_fits(length: int, scores: Scores) -> bool:
    """Whether cuDNN has all that is asked for: no cap, an even length, room for two segments."""
    return length % 2 == 0 and length >= TOKENS_PER_SEGMENT and scores.cap is None


def cudnn(
    q: Float[Array, "rows length heads size"],
    k: Float[Array, "rows length shared size"],
    v: Float[Array, "rows length shared size"],
    spans: Spans,
    scores: Scores,
) -> Float[Array, "rows length heads size"]:
    """Scaled dot-product attention; the backward pass keeps q, k and v.

    From Hopper on without a mask, each segment by itself. A number is kept for every query and every segment
    that a row could have, so a row of more segments than the packers put into one is NaN. Earlier GPUs,
    and windows, take a mask.

    Args:
      q: queries.
      k: keys.
      v: values.
      spans: which tokens attend to which.
      scores: how products of queries and keys become scores.
    """
    # JAX's public function has no packed rows.
    from jax._src.cudnn import fused_attention_stablehlo as of_jax

    packed = not spans.windowed and of_jax.check_compute_capability(_PACKED)
    recomputed = jax.checkpoint(_packed if packed else _masked, static_argnums=(4,))
    mixed: Array = recomputed(q, k, v, spans, scores)
    return mixed


def _masked(q: Array, k: Array, v: Array, spans: Spans, scores: Scores) -> Array:
    return jax.nn.dot_product_attention(
        q, k, v, mask=spans.mask()[:, None], scale=scores.scale, implementation="cudnn"
    )


def _packed(q: Array, k: Array, v: Array, spans: Spans, scores: Scores) -> Array:
    from jax._src.cudnn import fused_attention_stablehlo as of_jax

    kind = of_jax.MaskType.PADDING_CAUSAL if spans.causal else of_jax.MaskType.PADDING
    starts, lengths = segments(jnp.broadcast_to(spans.first, q.shape[:2]))
    mixed: Array = of_jax.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=starts,
        kv_offsets=starts,
        scale=scores.of_size(q.shape[3]),
        mask_type=kind,
    )
    too_many = starts[:, -1] >= 0
    return jnp.where(too_many[:, None, None, None], jnp.nan, mixed)


def segments(
    first: Int[Array, "rows length"],
) -> tuple[Int[Array, "rows most_and_one"], Int[Array, "rows most"]]:
    """Where the segments of each row begin, and how long they are, as cuDNN reads them: then -1.

    Args:
      first: for every token the first one of its segment.

    Returns:
      Starts and lengths, with room for what packers put into a row and its padding. The last start, one
      more than there is room for, is -1 but in rows of more segments.
    """
    length = first.shape[1]
    columns = jnp.arange(length, dtype=jnp.int32)
    begins = jnp.sort(jnp.where(first == columns, columns, length), axis=1)
    bounds = begins[:, : length // TOKENS_PER_SEGMENT + 2]
    starts = jnp.where(bounds < length, bounds, -1)
    return starts, jnp.where(starts[:, :-1] < 0, -1, jnp.diff(bounds, axis=1))
