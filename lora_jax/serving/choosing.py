"""The next token of every row, each by settings of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

NO_TOKEN = -1  # of a row whose logits are not finite numbers
_COLDEST = 1e-30  # smaller temperatures would be 0 where float32 has no smaller numbers


class Choice(NamedTuple):
    """Settings of every row's choice; the rules are those of `decoding.sampling.Sampling`.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: draw among the k most probable tokens; 0 is all.
      top_p: draw among the most probable tokens whose probabilities reach p together.
      seed: of the draws.
    """

    temperature: Float[Array | np.ndarray, " rows"]
    top_k: Int[Array | np.ndarray, " rows"]
    top_p: Float[Array | np.ndarray, " rows"]
    seed: UInt32[Array | np.ndarray, " rows"]


def choose(
    logits: Float[Array, "rows vocab"], choice: Choice, positions: Int[Array, " rows"]
) -> Int[Array, " rows"]:
    """Draws a token for every row.

    A row's draw depends on its seed and its position only, so it does not matter what else is in a batch.

    Args:
      logits: of the next token.
      choice: settings.
      positions: number of tokens before the one that is drawn.

    Returns:
      The tokens; `NO_TOKEN` where NaN or infinity is among the logits, and nothing can be said.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    drawn = choice.temperature > 0

    def draw() -> Array:
        # The largest first becomes 0: divided by a tiny temperature the others are -inf, and it stays 0.
        least = jnp.where(drawn, jnp.maximum(choice.temperature, _COLDEST), 1)
        scaled = (logits - largest) / least[:, None]
        narrowed = drawn & ((choice.top_k > 0) | (choice.top_p < 1))
        kept = jax.lax.cond(jnp.any(narrowed), lambda: _narrowed(scaled, choice), lambda: scaled)
        keys = jax.vmap(lambda seed, at: jax.random.fold_in(jax.random.key(seed), at))(
            choice.seed, positions
        )
        tokens = jax.vmap(jax.random.categorical)(keys, kept)
        return jnp.where(drawn, tokens.astype(jnp.int32), greedy)

    tokens = jax.lax.cond(jnp.any(drawn), draw, lambda: greedy)
    chosen: Array = jnp.where(jnp.isfinite(largest[:, 0]), tokens, NO_TOKEN)
    return chosen


def _narrowed(logits: Float[Array, "rows vocab"], choice: Choice) -> Float[Array, "rows vocab"]:
    """Logits with -inf for the tokens that top-k and then top-p leave out."""
    vocab = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    k = jnp.where(choice.top_k > 0, jnp.minimum(choice.top_k, vocab), vocab)
    within = jnp.arange(vocab) < k[:, None]
    # Tokens as probable as the k-th one stay, as in `Sampling`.
    least = jnp.take_along_axis(ordered, k[:, None] - 1, axis=-1)
    ordered = jnp.where(within | (ordered == least), ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    of_p = jnp.min(
        jnp.where(before < choice.top_p[:, None], ordered, jnp.inf), axis=-1, keepdims=True
    )
    least = jnp.where((choice.top_p < 1)[:, None], jnp.maximum(least, of_p), least)
    kept: Array = jnp.where(logits < least, -jnp.inf, logits)
    return kept
