"""Keeps any n-gram from occurring twice in a continuation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def ban_repeats(
    logits: Float[Array, "n beams vocab"],
    generated: Int[Array, "n beams steps"],
    step: Int[Array, ""],
    size: int,
) -> Float[Array, "n beams vocab"]:
    """Sets to -inf the tokens that would repeat an n-gram of the generated tokens.

    The prompt does not count (the public gpt2_beam.py; paper Table 11, "no repeat ngram size 4").

    Args:
      logits: of the next token.
      generated: tokens generated so far; those from index `step` on are not read.
      step: number of tokens generated so far.
      size: n of the n-grams; 0 bans nothing.
    """
    n, beams, steps = generated.shape
    starts = steps - size + 1
    if size < 1 or starts < 1:
        return logits
    # The newest size - 1 tokens, compared with every earlier window of that size.
    suffix = jax.lax.dynamic_slice_in_dim(generated, step - size + 1, size - 1, axis=2)
    repeated = jnp.broadcast_to(jnp.arange(starts) + size - 1 < step, (n, beams, starts))
    for j in range(size - 1):
        repeated &= generated[..., j : j + starts] == suffix[..., j : j + 1]
    places = (jnp.arange(n)[:, None, None], jnp.arange(beams)[:, None], generated[..., size - 1 :])
    return logits.at[places].add(jnp.where(repeated, -jnp.inf, 0))
