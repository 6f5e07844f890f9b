"""What the training loop counts of a batch: examples, tokens, and its shape."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from lora_jax.data.batch import Batch


class Counts(NamedTuple):
    """What one batch adds to a run's progress.

    Attributes:
      examples: trained on.
      tokens: real tokens among the slots; 0 where the data have no tokens.
      slots: token positions that are computed, padding included.
      shape: equal for batches that one compiled step serves.
    """

    examples: int
    tokens: int
    slots: int
    shape: Hashable


def count_packed(batch: Batch) -> Counts:
    """Counts of a packed batch; where its arrays have a first axis of runs, of one run on average."""
    segments, tokens = batch.inputs.segments, batch.inputs.tokens
    runs = segments.shape[0] if segments.ndim == 3 else 1
    return Counts(
        examples=int(segments.max()),
        tokens=round(int(np.count_nonzero(segments)) / runs),
        slots=tokens.size // runs,
        shape=(tokens.shape, batch.weights.shape),
    )
