"""Types and ranges of the sizes and rates of a model, wherever they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from lora_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a field may have.

    Attributes:
      least: the smallest one.
      most: the largest one.
      integer: whether only integers are taken.
      below: whether `most` itself is left out.
      optional: whether None is taken.
      words: the range in words.
    """

    least: float
    most: float
    integer: bool = True
    below: bool = False
    optional: bool = False
    words: str = ""

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        numbers = (int, np.integer) if self.integer else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, numbers):
            return False
        return bool(self.least <= value <= self.most and not (self.below and value == self.most))

    def __str__(self) -> str:
        return self.words or f"an integer from {self.least:,} to {self.most:,}"


def size(most: int) -> Range:
    """A number of things of which there is at least one."""
    return Range(least=1, most=most)


# `dropout` rounds a rate to 16 bits, so that larger ones would be 1.
RATE = Range(least=0, most=1 - 2**-16, integer=False, below=True, words="a number in [0, 1)")
OPTIONAL_RATE = dataclasses.replace(RATE, optional=True, words="a number in [0, 1) or nothing")
# The smallest number that float32 has in full.
EPSILON = Range(least=2**-126, most=1, integer=False, words="a positive number up to 1")
SPREAD = Range(least=2**-126, most=100, integer=False, words="a positive number up to 100")

# The largest sizes are those of no published model, and small enough for every product of them.
WIDTH = size(2**16)
INNER = size(2**19)
DEPTH = size(2**10)
ROWS = size(2**24)
OPTIONAL_INNER = dataclasses.replace(
    INNER, optional=True, words=f"an integer from 1 to {INNER.most:,} or nothing"
)


def check(settings: object, ranges: Mapping[str, Range]) -> None:
    """Raises InputError if a field of the settings is outside its range.

    Args:
      settings: a dataclass.
      ranges: by name of the field.
    """
    for name, allowed in ranges.items():
        if (value := getattr(settings, name)) not in allowed:
            raise InputError(f"{name} must be {allowed}, got {value!r}")
