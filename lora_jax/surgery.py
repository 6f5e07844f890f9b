"""Changing a model in place, and back: what methods insert, and the classes that modules take for it.

A method leaves every pre-trained Variable where it is. It gives a module a child (an `Inserted`), and
the module becomes an instance of a subclass of its class whose call uses the child. Taking the child
away and restoring the class gives back the pre-trained module.
"""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx


class Inserted(nnx.Module):
    """Base of every module that a method inserts; other methods do not look inside it."""


def pretrained_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The modules of a model by path, in path order, without those that methods inserted."""
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    inserted = [path for path, module in modules.items() if isinstance(module, Inserted)]
    return {
        path: module
        for path, module in sorted(modules.items())
        if not any(path == other or path.startswith(f"{other}/") for other in inserted)
    }


def replaces(original: type[nnx.Module], changed: type[nnx.Module]) -> None:
    """Declares that modules of class `original` may become `changed`, a subclass of it."""
    if not issubclass(changed, original):
        raise TypeError(f"{changed.__name__} is not a subclass of {original.__name__}")
    changed._replaces = original  # type: ignore[attr-defined]


@functools.cache  # one class for each pair: equal models have equal graph definitions
def extended(mixin: Any, original: Any) -> type[nnx.Module]:
    """The class `original` with the methods of `mixin` before its own."""
    metaclass: Any = type(original)
    changed: type[nnx.Module] = metaclass(
        f"{mixin.__name__}{original.__name__}", (mixin, original), {}
    )
    replaces(original, changed)
    return changed


def become(module: nnx.Module, changed: type[nnx.Module]) -> None:
    """Makes a module an instance of `changed`, in place.

    Raises:
      TypeError: it was not declared (see `replaces`) that `changed` replaces the module's class.
    """
    if _original(changed) is not type(module):
        raise TypeError(f"{changed.__name__} does not replace {type(module).__name__}")
    object.__setattr__(module, "__class__", changed)  # not an attribute: NNX must not track it


def restore(module: nnx.Module) -> None:
    """Makes a module an instance of its original class again, in place.

    Raises:
      TypeError: its class was not changed.
    """
    original = _original(type(module))
    if original is None:
        raise TypeError(f"the class of {type(module).__name__} was not changed")
    object.__setattr__(module, "__class__", original)


def is_changed(module: nnx.Module) -> bool:
    """Whether the module's class replaces another one."""
    return _original(type(module)) is not None


def changed_module(model: nnx.Module) -> str | None:
    """The path of the first module that a method inserted or changed, or None."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Inserted) or is_changed(module):
            return "/".join(map(str, path))
    return None


def _original(changed: type[nnx.Module]) -> type[nnx.Module] | None:
    original: type[nnx.Module] | None = vars(changed).get("_replaces")  # not an inherited one
    return original
