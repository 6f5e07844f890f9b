"""Changing a model in place, and back: what methods insert, and the classes that modules take for it.

A method leaves every pre-trained Variable where it is. It gives a module a child (an `Inserted`), and
the module becomes an instance of a subclass of its class whose call uses the child. Taking the child
away and restoring the class gives back the pre-trained module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from lora_jax.errors import InputTypeError


class Inserted(nnx.Module):
    """Base of every module that a method inserts; other methods do not look inside it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hide_methods(cls, Inserted)


class WeightModule(nnx.Module):
    """Base of weights that are modules: they belong to the layer that holds them, and are no layers."""


class _Hidden:
    """A method that is no plain function in its class."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self._function = function

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._function.__get__(instance, owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def hide_methods(changed: type, family: type) -> None:
    """Hides from `nnx.tabulate` the methods that a class of `family` adds to the user's, in place.

    `nnx.tabulate` runs every public function of a module's class as a compiled program, and leaves the
    classes changed where one fails: methods that return roles of axes or take functions are no
    programs.
    """
    theirs = [base for base in changed.__mro__ if not issubclass(base, family)]
    for name, method in list(vars(changed).items()):
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        if not any(name in vars(base) for base in theirs):
            setattr(changed, name, _Hidden(method))


class Absorbable(Inserted):
    """Base of what a weight of the module that it was inserted into can take in; see `absorb`."""

    def put_into(self, module: Any, dtype: DTypeLike | None) -> None:
        """Writes into the module's weight what this module would do, in place.

        Args:
          module: that this one was inserted into.
          dtype: of the weight afterwards; None for the type that it has.
        """
        raise NotImplementedError


class Divided(nnx.Module):
    """Base of a module that stands in the place of another one, as several parts of it; see `undivide`."""

    def whole(self) -> nnx.Module | None:
        """The module in whose place this one stands; None while its parts differ in more than values."""
        raise NotImplementedError


def pretrained_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The modules of a model by path, in path order, without those that methods inserted."""
    return dict(sorted(_modules(model)[0].items()))


def parameters_of(modules: Mapping[str, nnx.Module]) -> dict[str, tuple[nnx.Module, str]]:
    """The parameters that modules hold themselves, by path: the module, and the name in it."""
    return {
        f"{path}/{name}".removeprefix("/"): (module, name)
        for path, module in modules.items()
        for name, value in vars(module).items()
        if isinstance(value, nnx.Param)
    }


def inserted_modules(model: nnx.Module) -> dict[str, Inserted]:
    """What methods inserted into a model, by path: the outermost modules of each."""
    return dict(sorted(_modules(model)[1].items()))


def _modules(model: nnx.Module) -> tuple[dict[str, nnx.Module], dict[str, Inserted]]:
    """The pre-trained modules, and the outermost inserted ones."""
    modules = dict(nnx.iter_modules(model))
    inserted = {path for path, module in modules.items() if isinstance(module, Inserted)}
    pretrained: dict[str, nnx.Module] = {}
    outermost: dict[str, Inserted] = {}
    for path, module in modules.items():
        if any(path[:count] in inserted for count in range(len(path))):
            continue  # inside an inserted one
        if isinstance(module, WeightModule):
            continue
        name = "/".join(map(str, path))
        if isinstance(module, Inserted):
            outermost[name] = module
        else:
            pretrained[name] = module
    return pretrained, outermost


def replaces(original: type[nnx.Module], changed: type[nnx.Module]) -> None:
    """Declares that modules of class `original` may become `changed`, a subclass of it."""
    if not issubclass(changed, original):
        raise InputTypeError(f"{changed.__name__} is not a subclass of {original.__name__}")
    changed._replaces = original  # type: ignore[attr-defined]


@functools.cache  # one class for each pair: equal models have equal graph definitions
def extended(mixin: Any, original: Any, *, of_base: bool = False) -> type[nnx.Module]:
    """The class `original` with the methods of `mixin` before its own.

    Args:
      mixin: a class.
      original: the class of a layer.
      of_base: whether modules of the new class belong to the pre-trained model (`is_changed`).
    """
    metaclass: Any = type(original)
    changed: type[nnx.Module] = metaclass(
        f"{mixin.__name__}{original.__name__}", (mixin, original), {},
        pytree=original._pytree__is_pytree,
    )  # fmt: skip
    replaces(original, changed)
    changed._of_base = of_base  # type: ignore[attr-defined]
    return changed


def become(module: nnx.Module, changed: type[nnx.Module]) -> None:
    """Makes a module an instance of `changed`, in place.

    Raises:
      TypeError: it was not declared (see `replaces`) that `changed` replaces the module's class.
    """
    if _original(changed) is not type(module):
        raise InputTypeError(f"{changed.__name__} does not replace {type(module).__name__}")
    object.__setattr__(module, "__class__", changed)  # not an attribute: NNX must not track it


def restore(module: nnx.Module) -> None:
    """Makes a module an instance of its original class again, in place.

    Raises:
      TypeError: its class was not changed.
    """
    original = _original(type(module))
    if original is None:
        raise InputTypeError(f"the class of {type(module).__name__} was not changed")
    object.__setattr__(module, "__class__", original)


def is_changed(module: nnx.Module) -> bool:
    """Whether a method made the module's class replace another one.

    A base may have such classes too, of layers in another form: they are as pre-trained ones.
    """
    kind = type(module)
    return _original(kind) is not None and not is_of_base(kind)


def is_of_base(kind: type) -> bool:
    """Whether a class was made by `extended` for modules of the pre-trained model."""
    return bool(vars(kind).get("_of_base", False))


def original_class(module: nnx.Module) -> type[nnx.Module]:
    """The class that the module had before methods changed it."""
    kind = type(module)
    while (original := _original(kind)) is not None:
        kind = original
    return kind


def changed_module(model: nnx.Module) -> str | None:
    """The path of the first module that a method inserted or changed, or None."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Inserted) or is_changed(module):
            return "/".join(map(str, path))
    return None


def absorb(model: nnx.Module, dtype: DTypeLike | None = None) -> bool:
    """Lets weights take in all that they can, in place; returns whether there was something.

    Args:
      model: with inserted modules.
      dtype: of the weights that take something in; None for the type of each.
    """
    found = [
        (module, name, child)
        for module in pretrained_modules(model).values()
        for name, child in vars(module).items()
        if isinstance(child, Absorbable)
    ]
    for module, name, child in found:
        child.put_into(module, dtype)
        delattr(module, name)
        restore(module)
    return bool(found)


def undivide(model: nnx.Module) -> bool:
    """Puts divided modules together again where their parts are alike; returns whether there was one."""
    found = [
        (module, name, whole)
        for module in pretrained_modules(model).values()
        for name, child in vars(module).items()
        if isinstance(child, Divided) and (whole := child.whole()) is not None
    ]
    for module, name, whole in found:
        setattr(module, name, whole)
    return bool(found)


def _original(changed: type[nnx.Module]) -> type[nnx.Module] | None:
    original: type[nnx.Module] | None = vars(changed).get("_replaces")  # not an inherited one
    return original
