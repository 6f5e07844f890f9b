"""Checks of numbers that users give."""

from __future__ import annotations

import math
import numbers


def integer(name: str, value: object, least: int = 1, where: str = "") -> int:
    """Returns `value` as an int; ValueError names it if it is none (or a bool) or below `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        kind = "positive integer" if least == 1 else f"integer from {least} on"
        raise ValueError(f"{name} must be a {kind}{where}, got {value!r}")
    return int(value)


def not_negative(name: str, value: object) -> float:
    """Returns `value` as a float; ValueError names it if it is no finite number from 0 on."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise ValueError(f"{name} must be a finite number from 0 on, got {value!r}")
    return float(value)  # type: ignore[arg-type]
