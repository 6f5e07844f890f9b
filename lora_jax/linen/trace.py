"""Which module of a Linen model owns which parameters: seen by tracing a call, since Linen decides then."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen

from lora_jax.linen.nodes import PARAMS, is_array
from lora_jax.low_rank.contraction import Shape

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SeenModule:
    """A module that a call reached.

    Attributes:
      kind: its class.
      module: itself, without its scope, if it is a layer that can be adapted.
      shapes: of its own parameters, as it sees them: of one layer, in a scan or vmap.
      arguments: of the call, those that are no arrays, by name.
      normalised: whether a wrapper changes its parameters before it sees them.
    """

    kind: type[linen.Module]
    module: linen.Module | None
    shapes: dict[str, Shape]
    arguments: dict[str, str | int | bool | None]
    normalised: bool = False


def modules_of(
    module: linen.Module,
    variables: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    is_call: Callable[[type[linen.Module], str], bool],
) -> dict[Path, SeenModule]:
    """The modules that `module.apply(variables, *args, **kwargs)` reaches, by path; nothing is computed.

    Args:
      module: a Linen model.
      variables: its collections; arrays or shapes.
      args: of the call; arrays or shapes, and what is static.
      kwargs: of the call, `rngs`, `mutable` and `method` among them.
      is_call: whether a method of a class is the call of a layer that can be adapted. Such layers go
        before modules that share their scope.
    """
    seen: dict[Path, SeenModule] = {}
    wrappers: list[linen.Module] = []  # that are being called

    def record(
        call: Callable[..., Any],
        call_args: tuple[Any, ...],
        call_kwargs: dict[str, Any],
        context: linen.module.InterceptorContext,
    ) -> Any:
        current = context.module
        if current.scope is not None:
            path, kind = tuple(current.path), type(current)
            own = current.variables.get(PARAMS, {})
            shapes = {n: tuple(v.shape) for n, v in own.items() if is_array(v)}
            found = is_call(kind, context.method_name) and bool(shapes)
            known = seen.get(path)
            if known is None or (found and known.module is None):
                layer = current.clone(parent=None) if found else None
                arguments = _static(context.orig_method, call_args, call_kwargs) if found else {}
                seen[path] = SeenModule(kind, layer, shapes, arguments, bool(wrappers))
        if not isinstance(current, linen.WeightNorm | linen.SpectralNorm):
            return call(*call_args, **call_kwargs)
        wrappers.append(current)
        try:
            return call(*call_args, **call_kwargs)
        finally:
            wrappers.pop()

    leaves, tree = jax.tree.flatten((variables, args, dict(kwargs)))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def apply(arrays: dict[int, Any]) -> Any:
        both = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        traced, traced_args, traced_kwargs = jax.tree.unflatten(tree, both)
        with linen.intercept_methods(record):
            module.apply(traced, *traced_args, **traced_kwargs)

    jax.eval_shape(apply, arrays)
    return seen


def _static(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, str | int | bool | None]:
    bound = inspect.signature(method).bind(*args, **kwargs)
    kinds = (str, int, bool, type(None))
    return {name: value for name, value in bound.arguments.items() if isinstance(value, kinds)}
