"""What packing left of weights that had been changed: sums of squares, of one matrix or of many."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """How a matrix, packed again, differs from the one that was to be packed, and that from the base's.

    Attributes:
      squares: sum of the squares of the values that were to be packed.
      changes: of their differences from those of the base.
      kept: inner product of these with the differences that are in the packed values: as large as
        `changes` where packing loses nothing of them, 0 where it rounds all back to the base's values.
      errors: sum of the squares of the differences of the packed values from those to be packed.
    """

    squares: float
    changes: float
    kept: float
    errors: float

    @property
    def relative(self) -> float:
        """Root of `errors` relative to the values; infinite where these are zeros."""
        return relative(self.errors, self.squares)


def relative(part: float, whole: float) -> float:
    """Root of a sum of squares relative to another; infinite relative to zeros."""
    if not whole:
        return float(np.inf) if part else 0.0
    return float(np.sqrt(part / whole))


def measured(wanted: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """The sums for a matrix, by name.

    Args:
      wanted: the values that were to be packed.
      before: of the base.
      after: as the packed form has them.
    """
    return {
        "squares": product(wanted, wanted),
        "changes": product(wanted - before, wanted - before),
        "kept": product(after - before, wanted - before),
        "errors": product(after - wanted, after - wanted),
    }


def product(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of the products, in float64."""
    return float(np.vdot(one.astype(np.float64), other.astype(np.float64)))
