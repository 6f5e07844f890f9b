"""What names layers: a path, the end of paths, a regular expression, a type of layer, or all linear ones.

    lora("q_proj")                    every module whose path ends with it; so does "attention/query"
    lora(r".*/(query|value)")         a regular expression for whole paths
    lora(nnx.Linear)                  every layer of exactly this class; stored as "type:Linear"
    lora("all-linear")                every supported layer with a matrix, without heads

Targets and `exclude` share this syntax; all is text in the end, as configs and adapter.json have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from flax import linen, nnx

from lora_jax import patterns, surgery
from lora_jax.checks import Integer, integer
from lora_jax.errors import InputError, brief
from lora_jax.low_rank import limits
from lora_jax.ranges import LARGEST

ALL_LINEAR = "all-linear"
TYPE = "type:"
MOST = 10_000  # targets, exclusions, or numbers of layers
# Of modules that "all-linear" takes for task heads, and so leaves out with all they hold, where such a
# name comes before the number of a layer: a `score` inside of layer 3 is none.
HEADS = ("head", "lm_head", "classifier", "score", "logits", "qa_outputs", "cls")

Target = str | type
# Keys of a mapping are targets; a Mapping is invariant in them, so their type cannot say it.
Targets = Target | Sequence[Target] | Mapping[Any, Mapping[str, Any]]
Exclude = Target | Sequence[Target] | None
Layers = Integer | Sequence[Integer] | None


def is_open(target: str) -> bool:
    """Whether only the model shows what a target names."""
    return target == ALL_LINEAR or target.startswith(TYPE)


def by_target(targets: Targets) -> dict[str, Mapping[str, Any]]:
    """The arguments of each target alone, by its text; `targets` as of `lora`.

    Raises:
      ValueError: a target is neither text nor a class.
    """
    if isinstance(targets, Mapping):
        _check_count("targets", targets)
        for target, arguments in targets.items():
            if not isinstance(arguments, Mapping):
                raise InputError(
                    f"target {brief(target)} needs a mapping of arguments, got {brief(arguments)}"
                )
        return {as_text(target, "target"): own for target, own in targets.items()}
    return {target: {} for target in several(targets, "target")}


def several(targets: Any, name: str) -> tuple[str, ...]:
    """One or several targets as text.

    Raises:
      ValueError: another type.
    """
    if targets is None:
        return ()
    alone = isinstance(targets, str | type) or not isinstance(targets, Sequence)
    if not alone:
        _check_count(name, targets)
    return tuple(as_text(target, name) for target in ([targets] if alone else targets))


def _check_count(name: str, several: Sized) -> None:
    """Every one of them is compared with every module of a model."""
    if len(several) > MOST:
        raise InputError(
            f"{name}: {len(several):,} of them are more than {MOST:,}; write a regular expression that names "
            "many layers"
        )


def as_text(target: Any, name: str) -> str:
    """A target as configs have it: `type:Linear` for `nnx.Linear`.

    Classes that have the name of another one of `nnx` are written with their module.

    Raises:
      ValueError: neither text nor a class.
    """
    if isinstance(target, str):
        return target
    if isinstance(target, type) and issubclass(target, nnx.Module | linen.Module):
        unique = getattr(nnx, target.__name__, target) is target
        return TYPE + (target.__name__ if unique else _full_name(target))
    raise InputError(
        f"{name} must be a path, the end of paths, a regular expression, {ALL_LINEAR!r}, or a class of "
        f"layers (or several of these), got {brief(target)}"
    )


def layer_numbers(layers: Any) -> tuple[int, ...] | None:
    """The numbers of `layers=`; None for all layers.

    Raises:
      ValueError: neither an integer nor a sequence of them, or an empty one.
    """
    if layers is None:
        return None
    alone = not isinstance(layers, Sequence | range) or isinstance(layers, str)
    if not alone:
        _check_count("layers", layers)
    try:
        numbers = tuple(
            integer("a number of a layer", number, least=-LARGEST, most=LARGEST)
            for number in ([layers] if alone else layers)
        )
    except ValueError:
        numbers = ()
    if not numbers:
        raise InputError(
            "layers must be the number of a layer or a list of them, such as 0 or [0, 1, -1]; "
            f"got {brief(layers)}"
        )
    return numbers


def matching(
    target: str, modules: Mapping[str, nnx.Module], kind: str, of_parameters: str = ""
) -> list[str]:
    """The paths of the modules that a target names, in their order.

    Args:
      target: as text.
      modules: pre-trained ones by path.
      kind: what the target is for, for messages.
      of_parameters: what to do with parameters that no layer holds, for messages; "" for what `lora` can.

    Raises:
      ValueError: it names none, or its type several classes.
    """
    if target == ALL_LINEAR:
        found = [path for path, module in modules.items() if limits.is_matrix(module)]
        if not found:
            raise InputError(
                f"the {kind} {ALL_LINEAR!r} finds no linear layer; the model's modules are "
                f"{_classes(modules)}"
            )
        return found
    if target.startswith(TYPE):
        return _of_type(target.removeprefix(TYPE), modules, kind)
    if not patterns.paths_of(target, list(modules), kind):
        held = list(surgery.parameters_of(modules))
        if parameters := patterns.paths_of(target, held, kind):
            remedy = of_parameters or (
                f"to adapt them, tell the roles of their axes: {{{target!r}: {{'axes': 'io'}}}}, see "
                "docs/any_model.md"
            )
            raise InputError(
                f"the {kind} {target!r} names parameters ({patterns.some(parameters)}) and no layer; {remedy}"
            )
    return patterns.matching(target, list(modules), kind)


def in_layers(
    paths: Sequence[str], layers: Sequence[int], modules: Mapping[str, nnx.Module]
) -> list[str]:
    """Those of the paths that lie in layers of these numbers.

    The number of a layer is the first integer of a path. Negative ones count from the end, in each
    list of layers for itself.

    Raises:
      ValueError: no list of layers has that number, or there is none.
    """
    known: dict[str, set[int]] = {}
    for path in modules:
        if (place := _layer(path)) is not None:
            known.setdefault(place[0], set()).add(place[1])
    placed = {path: place for path in paths if (place := _layer(path)) is not None}
    lists = {name: sorted(known[name]) for name, _ in placed.values()}
    if not lists:
        raise InputError(
            f"layers={list(layers)}: no path of a target has the number of a layer ({patterns.some(paths)}); "
            "name the layers by a regular expression instead"
        )
    wanted: dict[str, set[int]] = {name: set() for name in lists}
    for layer in layers:
        for name, numbers in lists.items():
            if layer in numbers:
                wanted[name].add(layer)
            elif -len(numbers) <= layer < 0:
                wanted[name].add(numbers[layer])
        if not any(layer in n or -len(n) <= layer < 0 for n in lists.values()):
            ranges = ", ".join(
                f"{name or 'the model'} has {n[0]} to {n[-1]}" for name, n in lists.items()
            )
            raise InputError(f"layers={list(layers)}: there is no layer {layer}; {ranges}")
    return [path for path, (name, number) in placed.items() if number in wanted[name]]


def is_head(path: str) -> bool:
    """Whether one of the names of a path is in HEADS, before the number of a layer."""
    names = path.split("/")
    numbers = [i for i, name in enumerate(names) if _is_number(name)]
    return any(name in HEADS for name in names[: numbers[0] if numbers else None])


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def layer_number(path: str) -> int | None:
    """The number of the layer that a path lies in; None without one."""
    place = _layer(path)
    return None if place is None else place[1]


def _layer(path: str) -> tuple[str, int] | None:
    """The path of the list of layers that holds a path, and the number there."""
    names = path.split("/")
    for i, name in enumerate(names):
        if _is_number(name):
            return "/".join(names[:i]), int(name)
    return None


def _of_type(name: str, modules: Mapping[str, nnx.Module], kind: str) -> list[str]:
    classes = {path: surgery.original_class(module) for path, module in modules.items()}
    own = getattr(nnx, name, None)
    if "." in name:
        found = [path for path, c in classes.items() if _full_name(c) == name]
    else:  # Flax NNX's own class goes before others of its name, such as Flax Linen's
        found = [path for path, c in classes.items() if isinstance(own, type) and c is own]
        found = found or [path for path, c in classes.items() if c.__name__ == name]
    if not found:
        raise InputError(
            f"the {kind} {TYPE + name!r} names no module: the model has none of exactly this class. Its "
            f"classes are {_classes(modules)}"
        )
    if len(several := sorted({_full_name(classes[path]) for path in found})) > 1:
        raise InputError(
            f"the {kind} {TYPE + name!r} names several classes, {', '.join(several)}; write one with "
            f"its module, such as {TYPE + several[0]!r}"
        )
    return found


def _classes(modules: Mapping[str, nnx.Module]) -> str:
    return ", ".join(sorted({_full_name(surgery.original_class(m)) for m in modules.values()}))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
