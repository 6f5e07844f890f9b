"""Kinds of arguments of the public functions: what is of another type is refused in words, in one place.

@takes(model=MODEL, folder=FOLDER)
def load(folder, model): ...
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
from flax import nnx

from lora_jax.errors import InputError, InputTypeError, brief

_P = ParamSpec("_P")
_R = TypeVar("_R")
# The class of a user's model: what is made of it has that class for type checkers, and for editors.
Model = TypeVar("Model", bound=nnx.Module)


class Kind(NamedTuple):
    """What an argument may be.

    Attributes:
      of: classes of which it is an instance.
      words: for messages: what it is, and how one gets it.
    """

    of: tuple[Any, ...]
    words: str


MODEL = Kind((nnx.Module,), "an nnx.Module, a model itself")
FOLDER = Kind((str, os.PathLike), "the path of a folder")
BY_PATH = Kind((Mapping,), "a mapping by path of parameters, such as lora_jax.parameters(model)")
LABELS = Kind((Mapping,), "a mapping from path to group, such as method.labels(adapted)")
NOTES = Kind((Mapping, type(None)), "a mapping of JSON values, or None")
FUNCTION = Kind((Callable,), "a function")
KEY = Kind((jax.Array,), "a random key, such as jax.random.key(0)")
TEXT = Kind((str,), "a text")


def check(where: str, name: str, value: Any, kind: Kind) -> None:
    """Raises InputTypeError for an argument of another kind, InputError for a path that names nothing.

    Args:
      where: name of the function.
      name: of the argument.
      value: what the user gave.
      kind: what it may be.
    """
    if not isinstance(value, kind.of):
        what = f"of type {type(value).__name__}"
        if isinstance(value, type):
            what = "a class: make an object of it first"
        raise InputTypeError(f"{where}: {name} must be {kind.words}; got {brief(value)}, {what}")
    if kind is FOLDER and (not (text := os.fspath(value)) or "\0" in os.fsdecode(text)):
        raise InputError(f"{where}: {name} must be {kind.words}; got {brief(value)}")


def takes(**kinds: Kind) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Checks arguments of a function at every call, see `check`."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)
        where = function.__name__
        if where == "__init__":
            where = function.__qualname__.rpartition(".")[0]

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = signature.bind(*args, **kwargs).arguments
            for name, kind in kinds.items():
                if name in given:
                    check(where, name, given[name], kind)
            return function(*args, **kwargs)

        return checked

    return decorate
