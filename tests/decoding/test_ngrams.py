"""Banned repetitions of n-grams against sets of n-grams."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from slow_beam_search import repeating

from lora_jax.decoding.ngrams import ban_repeats


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_banned_tokens_are_those_of_sets(size):
    rng = np.random.default_rng(size)
    steps, vocab = 14, 4
    ban = jax.jit(ban_repeats, static_argnums=3)
    for step in range(steps):
        history = rng.integers(0, vocab, (3, 5, steps))  # what lies behind `step` must not count
        history[0, 0] = np.arange(steps) % 2
        logits = rng.normal(size=(3, 5, vocab)).astype(np.float32)
        got = ban(logits, history, step, size)
        for i in np.ndindex(3, 5):
            banned = repeating(history[i][:step].tolist(), size)
            expected = [-np.inf if t in banned else logits[i][t] for t in range(vocab)]
            np.testing.assert_array_equal(got[i], expected, err_msg=f"{step} {history[i]}")
    # A history shorter than the n-gram bans nothing.
    short = ban(logits, history[..., : max(size - 1, 1)], max(size - 1, 0), size)
    np.testing.assert_array_equal(short, logits)
