"""Texts to be classified: as tokens, on their way, and packed into the rows of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lora_jax.data.batch import Inputs
from lora_jax.data.packing import Shape, lay_out
from lora_jax.serving import shapes, tickets
from lora_jax.serving.adapters import Version


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A text, or a pair, as tokens.

    Attributes:
      tokens: token ids, the classification token first.
      types: token types.
    """

    tokens: Int[np.ndarray, " tokens"]
    types: Int[np.ndarray, " tokens"]


class Ticket(tickets.Ticket):
    """An example on its way.

    Attributes:
      example: that is classified.
      outputs: of its adapter's head; None before.
    """

    def __init__(
        self, example: Example, version: Version, seconds: float | None, tell: Callable[[Any], None]
    ):
        super().__init__(version, seconds, tell)
        self.example = example
        self.outputs: Float[np.ndarray, " outputs"] | None = None


def packed(
    examples: Sequence[Example], shape: Shape
) -> tuple[Inputs, Int[np.ndarray, " slots"], Int[np.ndarray, " slots"]]:
    """Lays examples out.

    Args:
      examples: as many as `shapes.slots` at most.
      shape: in which they fit.

    Returns:
      Rows of that shape, and row and column of every example's first token; spare slots repeat the last one.
    """
    inputs, places = lay_out([example.tokens for example in examples], shape)
    for example, (row, column) in zip(examples, places, strict=True):
        inputs.types[row, column : column + len(example.types)] = example.types
    spare = shapes.slots(shape) - len(places)
    rows, columns = np.pad(np.array(places, np.int32).T, ((0, 0), (0, spare)), mode="edge")
    return inputs, rows, columns
