"""The type checker that the import hook in conftest.py puts around every function of the library."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An int is a float, as type checkers have it (PEP 484).
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))
_made = {}


def check(function):
    """What beartype makes of a function; of one inside another once, not at every call of the outer.

    The hook passes an empty function of the same signature, so that one stands for all of them. Of the
    defaults, which the outer's values may be, the types count.
    """
    if "<locals>" not in getattr(function, "__qualname__", "") or isinstance(function, type):
        return _beartype(function)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    signature = (repr(function.__annotations__), *map(type, defaults))
    key = (function.__module__, function.__qualname__, function.__code__, signature)
    if key not in _made:
        _made[key] = _beartype(function)
    return _made[key]
