"""The ranges of settings: what a value may be, said once, for the check and for the documents.

@dataclasses.dataclass(frozen=True)
class Settings:
    epochs: int = setting(3, Whole(least=0))

    def __post_init__(self) -> None:
        check_settings(self)
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from lora_jax.errors import InputError, brief, nearest_name

_RANGE = "range"  # key of a dataclass field's metadata
LARGEST = 2**31 - 1  # of whole numbers, which programs hold in 32 bits
_FLOAT32 = np.finfo(np.float32)  # the type of computation


@runtime_checkable
class Range(Protocol):
    """What a setting may be; `str` says it in words."""

    def accepts(self, value: Any) -> bool:
        """Whether the value is of the right type and in the range."""
        ...

    def plain(self, value: Any) -> Any:
        """An accepted value as Python's own type."""
        ...


def check(name: str, value: Any, allowed: Range) -> Any:
    """The value as Python's own type.

    Args:
      name: of the setting, for the message.
      value: what the user gave.
      allowed: what it may be.

    Raises:
      InputError: it is something else.
    """
    if not allowed.accepts(value):
        why = _near(value, allowed) or _rounded(value, allowed)
        raise InputError(f"{name} must be {allowed}, got {brief(value)}{why}")
    return allowed.plain(value)


def _near(value: Any, allowed: Range) -> str:
    """The choice that was probably meant, for a message."""
    if not isinstance(allowed, OneOf) or not isinstance(value, str):
        return ""
    close = nearest_name(value, [c for c in allowed.choices if isinstance(c, str)])
    return f". Did you mean {close!r}?" if close else ""


def _rounded(value: Any, allowed: Range) -> str:
    """What float32 makes of a number, for a message; "" where that is not the fault."""
    number = finite(value)
    if number is None or not isinstance(allowed, Number | OrNone):
        return ""
    held = in_float32(number)
    if held is None or (number != 0) != (held != 0) or (held == 1) != (number == 1):
        return f", which is {'infinite' if held is None else f'{held:g}'} in float32"
    return ""


def is_whole(value: object) -> TypeGuard[numbers.Integral]:
    """Whether a value is a whole number, Python's or numpy's; a bool is none although Python says so."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def finite(value: object) -> float | None:
    """A number, Python's or numpy's, as a float; None for what is no number or not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer above all floats
        return None
    return number if math.isfinite(number) else None


def in_float32(number: float) -> float | None:
    """What a finite number is where programs compute; None: infinite.

    Numbers below the smallest one that float32 has in full (2**-126) are 0 there.
    """
    if abs(number) > float(_FLOAT32.max):
        return None
    return 0.0 if abs(number) < float(_FLOAT32.tiny) else float(np.float32(number))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int = 1
    most: int = LARGEST

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        return is_whole(value) and self.least <= int(value) <= self.most

    def plain(self, value: Any) -> int:
        """See `Range`."""
        return int(value)

    def __str__(self) -> str:
        if self.most < LARGEST:
            return f"an integer from {self.least} to {self.most:,}"
        return "a positive integer" if self.least == 1 else f"an integer from {self.least} on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number, with bounds of which `above` and `below` are not in the range themselves.

    It must be one for float32, too: not 0 there unless it is 0, and not `above` or `below` when rounded.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        number = finite(value)
        held = None if number is None else in_float32(number)
        return (
            number is not None
            and held is not None
            and (held != 0 or number == 0)
            and (self.least is None or number >= self.least)
            and (self.above is None or held > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or held < self.below)
        )

    def plain(self, value: Any) -> float:
        """See `Range`."""
        return float(value)

    def __str__(self) -> str:
        low = self.above if self.least is None else self.least
        high = self.below if self.most is None else self.most
        if low is None:
            return "a finite number" if high is None else f"a number up to {high:g}"
        if high is None:
            return self._open(low)
        opening = "[" if self.above is None else "("
        closing = "]" if self.below is None else ")"
        return f"a number in {opening}{low:g}, {high:g}{closing}"

    def _open(self, low: float) -> str:
        if self.above == 0:
            return "a positive finite number"
        return f"a finite number {f'above {low:g}' if self.least is None else f'from {low:g} on'}"


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        return isinstance(value, bool | np.bool_)

    def plain(self, value: Any) -> bool:
        """See `Range`."""
        return bool(value)

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A text; `empty` says what an empty one means, where it may be empty."""

    empty: str = ""

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        return isinstance(value, str) and "\0" not in value and bool(self.empty or value.strip())

    def plain(self, value: Any) -> str:
        """See `Range`."""
        return str(value)

    def __str__(self) -> str:
        return f'a text, "" for {self.empty}' if self.empty else "a text that is not empty"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some values."""

    choices: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        """See `Range`; True is not 1."""
        return any(type(value) is type(choice) and value == choice for choice in self.choices)

    def plain(self, value: Any) -> Any:
        """See `Range`."""
        return value

    def __str__(self) -> str:
        *first, last = map(repr, self.choices)
        return f"{', '.join(first)} or {last}" if first else last


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrNone:
    """Something, or None, which means `none`."""

    of: Range
    none: str

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        return value is None or self.of.accepts(value)

    def plain(self, value: Any) -> Any:
        """See `Range`."""
        return None if value is None else self.of.plain(value)

    def __str__(self) -> str:
        return f"{self.of}, or None for {self.none}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """A tuple or list of values, all `different`; `empty` says what none means, if that may be.

    With a `size` there are so many, no more and no fewer.
    """

    of: Range
    different: bool = True
    empty: str = ""
    size: int | None = None

    def accepts(self, value: Any) -> bool:
        """See `Range`."""
        if not isinstance(value, tuple | list) or not (value or self.empty):
            return False
        if not all(self.of.accepts(item) for item in value):
            return False
        if self.size is not None and len(value) != self.size:
            return False
        return not self.different or len({repr(self.of.plain(v)) for v in value}) == len(value)

    def plain(self, value: Any) -> tuple[Any, ...]:
        """See `Range`."""
        return tuple(self.of.plain(item) for item in value)

    def __str__(self) -> str:
        different = ", all different" if self.different else ""
        empty = f"; () for {self.empty}" if self.empty else ", at least one"
        if self.size is not None:
            return f"a tuple of {self.size}{different}, each {self.of}"
        return f"a tuple{different}{empty}, each {self.of}"


# `lora_jax.dropout` rounds a rate to 16 bits, so that larger ones would be 1.
DROPOUT = Number(least=0, most=1 - 2**-16)
SEED = Whole(least=0, most=2**31 - 2)  # a run's dropout takes the next number


def setting(default: Any, allowed: Range) -> Any:
    """A dataclass field with a range."""
    return dataclasses.field(default=default, metadata={_RANGE: allowed})


def ranges_of(settings: Any) -> dict[str, Range]:
    """The ranges of a dataclass's fields (or those of an instance), by name."""
    return {
        field.name: field.metadata[_RANGE]
        for field in dataclasses.fields(settings)
        if _RANGE in field.metadata
    }


def check_settings(settings: Any, prefix: str = "") -> None:
    """Checks the fields of a (frozen) dataclass instance; numbers become Python's own.

    Args:
      settings: whose fields have ranges, see `setting`.
      prefix: in front of the names, for messages.

    Raises:
      InputError: a value is not in its range.
    """
    for name, allowed in ranges_of(settings).items():
        value = check(prefix + name, getattr(settings, name), allowed)
        object.__setattr__(settings, name, value)
