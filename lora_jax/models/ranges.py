"""Ranges of the sizes and rates of a model, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping

from lora_jax import ranges
from lora_jax.ranges import DROPOUT, Number, OrNone, Range, Whole

RATE = DROPOUT
OPTIONAL_RATE = OrNone(of=RATE, none="the model's other rate")
# The smallest number that float32 has in full.
EPSILON = Number(least=2**-126, most=1)
SPREAD = Number(least=2**-126, most=100)

# The largest sizes are those of no published model, and small enough for every product of them.
WIDTH = Whole(most=2**16)
INNER = Whole(most=2**19)
DEPTH = Whole(most=2**10)
ROWS = Whole(most=2**24)
OPTIONAL_INNER = OrNone(of=INNER, none="four times the width")


def check(settings: object, allowed: Mapping[str, Range]) -> None:
    """Raises InputError if a field of the settings is outside its range.

    Args:
      settings: a dataclass.
      allowed: by name of the field.
    """
    for name, of_field in allowed.items():
        ranges.check(name, getattr(settings, name), of_field)
