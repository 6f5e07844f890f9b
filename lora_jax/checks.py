"""Checks of values that users give."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.errors import InputError, shown

# What constructors take for numbers: Python's, or numpy's.
# Not np.integer[Any]: beartype cannot read that in a union.
Integer = int | np.integer  # type: ignore[type-arg]
Real = float | np.floating  # type: ignore[type-arg]


def integer(name: str, value: object, least: int = 1, where: str = "") -> int:
    """Returns `value` as an int.

    Args:
      name: of the number, for the message.
      value: what the user gave; a bool is refused although Python calls it an int.
      least: the smallest value that makes sense.
      where: what the number belongs to, for the message.

    Raises:
      ValueError: the value is not an integer, or smaller than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        kind = "positive integer" if least == 1 else f"integer from {least} on"
        raise InputError(f"{name} must be a {kind}{where}, got {shown(value)}")
    return int(value)


def not_negative(name: str, value: object) -> float:
    """Returns `value` as a float.

    Args:
      name: of the number, for the message.
      value: what the user gave.

    Raises:
      ValueError: the value is not a finite number from 0 on.
    """
    if (number := _finite(value)) is None or number < 0:
        raise InputError(f"{name} must be a finite number from 0 on, got {shown(value)}")
    return number


def positive(name: str, value: object) -> float:
    """Returns `value` as a float.

    Args:
      name: of the number, for the message.
      value: what the user gave.

    Raises:
      ValueError: the value is not a finite number above 0.
    """
    if (number := _finite(value)) is None or number <= 0:
        raise InputError(f"{name} must be a positive finite number, got {shown(value)}")
    return number


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        return None
    return number if math.isfinite(number) else None


def json_values(value: Any) -> Any:
    """The value as JSON has it: lists for tuples, Python numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: json_values(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
