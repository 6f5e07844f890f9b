"""A packed batch: token rows that several examples share, and the outputs that are trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int


class Inputs(NamedTuple):
    """A batch of token rows, each holding one or more segments (examples).

    Attributes:
      tokens: token ids.
      segments: 0 for padding; tokens of one row with equal number lie side by side, and attend to each other.
      positions: position inside the segment, from 0.
      types: token types (0 for the first sentence, 1 for the second); a decoder does not read them.
    """

    tokens: Int[Array | np.ndarray, "*runs rows length"]
    segments: Int[Array | np.ndarray, "*runs rows length"]
    positions: Int[Array | np.ndarray, "*runs rows length"]
    types: Int[Array | np.ndarray, "*runs rows length"]


class Batch(NamedTuple):
    """One packed batch. The last four arrays are slots: one for each output that is trained on.

    Slot i is example i of a classification batch, whatever row holds it; a decoder's batch has a
    slot for every token to be predicted. A batch of several runs (`BatchesOfRuns`) has one more
    axis in front of every array.

    Attributes:
      inputs: token rows, see `Inputs`; segments are numbered from 1, over all rows.
      rows: row of each output's token (the classification token; the token before a predicted one).
      columns: its column.
      labels: class ids, scores, or next tokens.
      weights: 1 for an output, 0 for an unused slot.
    """

    inputs: Inputs
    rows: Int[Array | np.ndarray, "*runs slots"]
    columns: Int[Array | np.ndarray, "*runs slots"]
    labels: Int[Array | np.ndarray, "*runs slots"] | Float[Array | np.ndarray, "*runs slots"]
    weights: Float[Array | np.ndarray, "*runs slots"]
