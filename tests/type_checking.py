"""The type checker that the import hook in conftest.py puts around every function of the library."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

# An int is a float, as type checkers have it (PEP 484).
_beartype = beartype(
    conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
)
_with_shapes = jaxtyping.jaxtyped
_made = {}


def install(package):
    """Has every function of a package that is imported from now on checked at every call."""
    jaxtyping.jaxtyped = jaxtyped  # what the hook puts before every function and class
    jaxtyping.install_import_hook(package, "type_checking.check")


def jaxtyped(fn=None, *, typechecker):
    """As jaxtyping's, which binds the arguments anew at every call to tie sizes of arrays together.

    That is most of what checking costs, so functions without arrays are checked by beartype alone.
    """
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(fn) and inspect.isfunction(init := vars(fn).get("__init__")):
        if (hints := _without_shapes(init)) is not None:
            fn.__init__ = _of_types(init, hints)
            return fn
    elif inspect.isfunction(fn) and (hints := _without_shapes(fn)) is not None:
        return _of_types(fn, hints)
    return _with_shapes(fn, typechecker=typechecker)


def _without_shapes(function):
    """The types of a function of which none says anything about an array, else None.

    Functions inside others and generators are left to jaxtyping, and so are types whose names are not
    defined yet.
    """
    if "<locals>" in function.__qualname__ or inspect.isgeneratorfunction(function):
        return None
    if getattr(function, "__no_type_check__", False) or hasattr(function, "__wrapped__"):
        return None
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        return None
    return None if any(map(_of_jaxtyping, hints.values())) else hints


def _of_jaxtyping(hint):
    kinds = (hint, type(hint), typing.get_origin(hint))
    if any((getattr(kind, "__module__", None) or "").startswith("jaxtyping") for kind in kinds):
        return True
    if isinstance(hint, list | tuple):  # the parameters of a Callable
        return any(map(_of_jaxtyping, hint))
    return any(map(_of_jaxtyping, typing.get_args(hint)))


def _of_types(function, hints):
    typed = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    functools.update_wrapper(typed, function)
    del typed.__wrapped__
    typed.__kwdefaults__, typed.__annotations__ = function.__kwdefaults__, hints
    checked = _beartype(typed)

    @functools.wraps(function)
    def either(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        return checked(*args, **kwargs)

    return either


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
