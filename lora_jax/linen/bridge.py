"""A Linen model as an NNX model, and its variables back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen, nnx

from lora_jax.errors import InputError, InputTypeError
from lora_jax.linen import trace
from lora_jax.linen.calls import CalledNode, Held, collections, is_call, node_class
from lora_jax.linen.nodes import (
    PARAMS,
    LinenNode,
    NormalisedByWeightNorm,
    contents,
    leaves,
    nested,
    parent_of,
    put,
)
from lora_jax.surgery import Inserted


def as_nnx(
    module: linen.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> CalledNode:
    """A Linen model as an NNX model, with the same paths, the same arrays and the same call.

    Methods are inserted into it, and it is trained, saved and merged as any NNX model:

        model = lora_jax.linen.as_nnx(module, {"params": params}, ids, train=False)
        logits = model(ids, train=False)  # module.apply({"params": params}, ids, train=False)

    Args:
      module: a Linen model.
      variables: its collections, `params` among them; arrays or shapes, nested.
      *args: example inputs of a call that reaches all layers to adapt; arrays or shapes. Nothing is computed.
      **kwargs: of that call, too, such as `train`, `rngs`, `mutable` or `method`.

    Raises:
      TypeError: the module is no Linen module.
      ValueError: no `params`, or two collections hold different values at one path.
    """
    if not isinstance(module, linen.Module):
        raise InputTypeError(f"as_nnx takes a flax.linen.Module, got {type(module).__name__}")
    if not isinstance(variables.get(PARAMS), Mapping):
        raise InputError(
            f"variables must hold the collection 'params', as of module.init; they hold "
            f'{sorted(variables)[:5]}. For params alone: as_nnx(module, {{"params": params}}, ...)'
        )
    plain = {name: nested(dict(leaves(collection))) for name, collection in variables.items()}
    seen = trace.modules_of(module, plain, args, kwargs, is_call)
    model = _node(seen.pop((), trace.SeenModule(type(module), None, {}, {})))
    assert isinstance(model, CalledNode)
    model.linen_module = Held(module)
    for path, found in sorted(seen.items()):
        setattr(parent_of(model, path), path[-1], _node(found))
    for name, collection in variables.items():
        for path, value in leaves(collection, boxed=True):
            put(model, name, path, value)
    return model


def variables(model: nnx.Module) -> dict[str, Any]:
    """The variables of a model for `module.apply`, nested: {"params": {...}, ...}; plain arrays.

    Args:
      model: of `as_nnx`, merged or never adapted; or an `nnx.bridge.ToNNX`.

    Raises:
      TypeError: another model.
      ValueError: the model is adapted.
    """
    if isinstance(model, nnx.bridge.ToNNX):
        own = {n: v for n, v in vars(model).items() if not n.startswith(("to_nnx__", "_pytree__"))}
        boxed = nnx.bridge.variables.nnx_attrs_to_linen_vars(own)
        return {name: nested(dict(leaves(inner))) for name, inner in boxed.items()}
    if not isinstance(model, LinenNode):
        raise InputTypeError(f"variables takes a model of as_nnx, got {type(model).__name__}")
    for path, leaf in contents(model):
        if isinstance(leaf, Inserted):
            raise InputError(
                f"the model is adapted ({'/'.join(path)}), which module.apply would not see; call "
                "variables(lora_jax.merge(model)), or call the model itself"
            )
    return collections(model)


def _node(found: trace.SeenModule) -> LinenNode:
    if found.normalised:
        return NormalisedByWeightNorm()
    node = node_class(found.kind)()
    if found.module is not None:
        node.linen_module = Held(found.module)
        node.linen_shapes = tuple(sorted(found.shapes.items()))
        node.linen_arguments = tuple(found.arguments.items())
    return node
