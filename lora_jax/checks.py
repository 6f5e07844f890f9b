"""Checks of values that users give."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError, InputTypeError, brief
from lora_jax.ranges import DROPOUT, Number, OneOf, check, is_whole

WIDEST = 1000.0  # standard deviation of initial values; they are far below 1

# What constructors take for numbers: Python's, or numpy's.
# Not np.integer[Any]: beartype cannot read that in a union.
Integer = int | np.integer  # type: ignore[type-arg]
Real = float | np.floating  # type: ignore[type-arg]


def instance(name: str, value: object, kind: type[Any], such_as: str) -> None:
    """Raises InputTypeError for an argument that is no instance of a class.

    Args:
      name: of the argument, for the message.
      value: what the user gave.
      kind: the class.
      such_as: how one gets such an object, for the message.
    """
    if not isinstance(value, kind):
        raise InputTypeError(
            f"{name} must be of type {kind.__name__} ({such_as}), got {brief(value)} of type "
            f"{type(value).__name__}"
        )


def floating(name: str, dtype: Any) -> Any:
    """Returns a floating-point type as jax.numpy's, None as it is.

    Args:
      name: of the argument, for the message.
      dtype: what the user gave.

    Raises:
      InputError: no type, or one of other numbers.
    """
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if not jnp.issubdtype(found, jnp.floating):
        raise InputError(
            f"{name} must be a floating-point type such as 'float32' or 'bfloat16'; got {brief(dtype)}"
        )
    return found


def integer(
    name: str, value: object, least: int = 1, where: str = "", most: int | None = None
) -> int:
    """Returns `value` as an int.

    Args:
      name: of the number, for the message.
      value: what the user gave; a bool is refused although Python calls it an int.
      least: the smallest value that makes sense.
      where: what the number belongs to, for the message.
      most: the largest value that makes sense; None is any.

    Raises:
      ValueError: the value is not an integer, smaller than `least` or larger than `most`.
    """
    if not is_whole(value) or int(value) < least:
        kind = "a positive integer" if least == 1 else f"an integer from {least} on"
        raise InputError(f"{name} must be {kind}{where}, got {brief(value)}")
    if most is not None and int(value) > most:
        raise InputError(f"{name} must be at most {most:,}{where}, got {brief(value)}")
    return int(value)


def not_negative(name: str, value: object, most: float = math.inf) -> float:
    """Returns `value` as a float.

    Args:
      name: of the number, for the message.
      value: what the user gave.
      most: the largest value that makes sense.

    Raises:
      ValueError: the value is not a finite number from 0 to `most`.
    """
    number: float = check(name, value, Number(least=0))
    if number > most:
        raise InputError(f"{name} must be at most {most:g}, got {brief(value)}")
    return number


def positive(name: str, value: object) -> float:
    """Returns `value` as a float.

    Args:
      name: of the number, for the message.
      value: what the user gave.

    Raises:
      ValueError: the value is not a finite number above 0.
    """
    number: float = check(name, value, Number(above=0))
    return number


def dropout_rate(name: str, value: object) -> float:
    """Returns `value`, a rate of dropout, as a float.

    Raises:
      ValueError: the value is not a number from 0 to below 1, as dropout rounds it.
    """
    rate: float = check(name, value, DROPOUT)
    return rate


def flag(name: str, value: object) -> bool:
    """A truth value; raises InputError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {brief(value)}")
    return bool(value)


def one_of(name: str, value: object, known: Collection[str]) -> None:
    """Raises ValueError if `value` is not one of the known texts."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} must be {OneOf(tuple(known))}, got {brief(value)}")


def names(name: str, value: object) -> tuple[str, ...]:
    """Returns several different names as a tuple.

    Raises:
      ValueError: the value is not a list or tuple of text, or has a name twice.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise InputError(f"{name} must be a list of names, got {brief(value)}")
    if len(set(value)) < len(value):
        raise InputError(f"{name} has a name twice: {brief(value)}")
    return tuple(value)


def json_values(value: Any) -> Any:
    """The value as JSON has it: lists for tuples, Python numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: json_values(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
