"""Random tokenised examples, for tests of packing."""

from __future__ import annotations

import numpy as np

from lora_jax.data.packing import TokenisedExamples


def random_examples(count, longest, seed, vocab=50, classes=3):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return TokenisedExamples(
        [rng.integers(1, vocab, n).astype(np.int32) for n in lengths],
        [np.sort(rng.integers(0, 2, n)).astype(np.int32) for n in lengths],
        rng.integers(0, classes, count).astype(np.int32),
    )
