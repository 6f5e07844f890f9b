"""A field of a config: what its value may be, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lora_jax.ranges import Range


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      allowed: what its value may be.
      meaning: for the documents.
      required: whether every config must have it.
    """

    allowed: Range
    meaning: str
    required: bool = True


Fields = Mapping[str, Field]  # by dotted name
