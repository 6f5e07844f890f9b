"""NNX modules that stand for the modules of a Linen model: they hold its variables, at the same paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from lora_jax.errors import InputError
from lora_jax.sharding.axes import FLAX_KEYS
from lora_jax.surgery import Inserted

PARAMS = "params"
_COLLECTION = "linen_collection"  # metadata of a Variable


class OtherVariable(nnx.Variable[Any]):
    """A value of a Linen collection that NNX has no class for."""


_KINDS: Mapping[str, type[nnx.Variable[Any]]] = {
    PARAMS: nnx.Param,
    "batch_stats": nnx.BatchStat,
    "cache": nnx.Cache,
    "intermediates": nnx.Intermediate,
    "perturbations": nnx.Perturbation,
}


class LinenNode(nnx.Module):
    """Stands for one Linen module; its children and Variables have the names that they have there.

    Attributes:
      without_lora_layer: what to do where it has none, for an error.
    """

    without_lora_layer: ClassVar[str] = (
        "For a Linen class of your own write a subclass of lora_jax.linen.LinenLoRALayer and decorate it "
        "with @lora_jax.linen.register(THAT_CLASS); see docs/linen.md"
    )


class NotCalledByExampleInputs(LinenNode):
    """Stands for a module that the call of `as_nnx` did not reach, so that its class is unknown."""

    without_lora_layer = (
        "Give as_nnx example inputs, or a `method`, with which the model calls that module"
    )


class NormalisedByWeightNorm(LinenNode):
    """Stands for a layer in `WeightNorm` or `SpectralNorm`: what it multiplies by is not its kernel."""

    without_lora_layer = "Leave the layer out, or take it out of its wrapper"


def leaves(
    collection: Mapping[str, Any], *, boxed: bool = False
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the values of a nested collection by path.

    Args:
      collection: nested.
      boxed: whether partitioned values stay in Flax's boxes, which hold the names of their axes.
    """
    for name, value in collection.items():
        if isinstance(value, Mapping):
            for path, leaf in leaves(value, boxed=boxed):
                yield (name, *path), leaf
        elif isinstance(value, linen.meta.AxisMetadata) and not boxed:
            yield (name,), value.unbox()  # type: ignore[no-untyped-call]
        else:
            yield (name,), value


def nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """The inverse of `leaves`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value
    return tree


def put(root: LinenNode, collection: str, path: tuple[str, ...], value: Any) -> None:
    """Sets a value of a collection, boxed or not, in the tree of nodes; nodes that are missing are made.

    Raises:
      ValueError: the place is taken by a value of another collection, or by a module.
    """
    names = None
    if isinstance(value, linen.meta.AxisMetadata):
        names, value = getattr(value, "names", None), value.unbox()  # type: ignore[no-untyped-call]
    node = parent_of(root, path)
    old = vars(node).get(path[-1])
    if isinstance(value, np.ndarray):
        value = jnp.asarray(value)
    if old is None:
        kind = _KINDS.get(collection, OtherVariable)
        variable = kind(value)
        variable.set_metadata(_COLLECTION, collection)
        if names is not None:  # as `nnx.with_partitioning` has them: factors take them over
            variable.set_metadata(FLAX_KEYS[-1], tuple(names))
        setattr(node, path[-1], variable)
    elif isinstance(old, nnx.Variable) and collection_of(old) == collection:
        old.set_value(value)
    else:
        raise InputError(
            f"{'/'.join(path)} of the collection {collection!r} is in another one too, and one NNX model "
            "cannot hold both; leave one out of `variables`"
        )


def parent_of(root: LinenNode, path: tuple[str, ...]) -> LinenNode:
    """The node that holds what is at a path; nodes that are missing are made."""
    node = root
    for name in path[:-1]:
        if name not in vars(node):
            setattr(node, name, NotCalledByExampleInputs())
        node = getattr(node, name)
    return node


def collection_of(variable: nnx.Variable[Any]) -> str:
    """The Linen collection that a Variable of a node belongs to."""
    name: str | None = variable.get_metadata().get(_COLLECTION)
    if name is None:  # a Variable that took the place of ours
        known = (name for name, kind in _KINDS.items() if isinstance(variable, kind))
        name = next(known, type(variable).__name__)
    return name


def contents(
    node: LinenNode, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], nnx.Variable[Any] | Inserted]]:
    """Yields the Variables below a node, and the children that methods inserted, by path."""
    for name, value in vars(node).items():
        if isinstance(value, LinenNode):
            yield from contents(value, (*path, name))
        elif isinstance(value, nnx.Variable):
            yield (*path, name), getattr(node, name)  # an adapted parameter with its update
        elif isinstance(value, Inserted):
            yield (*path, name), value


def is_array(value: Any) -> bool:
    """Whether a value is an array or the shape of one."""
    return isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
