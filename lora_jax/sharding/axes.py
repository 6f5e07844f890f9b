"""Logical axes of parameters and activations, and the one table that maps them to mesh axes.

A logical axis is a name for what a dimension of an array means ("embed", "heads"); a mesh axis is a
name for a dimension of the grid of devices ("fsdp", "model"). A model names the axes of its parameters
where it makes them (`nnx.Linear(..., kernel_metadata=named("embed", "mlp"))`) and those of its
activations with `constrain`. Parameters that a method inserts take the names of the weight they belong
to. Nothing else knows how a model is sharded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array

from lora_jax.errors import InputError
from lora_jax.state import kind, leaves, value

Axes = tuple[str | None, ...]  # the logical axes of an array; None is an axis without a name
AnyVariable = nnx.Variable[Any]
_State = TypeVar("_State")

FLAX_KEYS = ("out_sharding", "sharding_names")  # metadata that `nnx.with_partitioning` writes
_KEY = "logical_axes"  # not Flax's own `out_sharding`: that one shards while a model is being made

# Logical axis -> the mesh axes over which it is split; () is not split. Products over a "heads" or
# "mlp" axis are summed over `model`, as in Megatron-LM (Shoeybi et al. 2019); parts of "embed" are
# gathered before use, as in ZeRO-3 (Rajbhandari et al. 2020). Factors of a low-rank update have their
# kernel's axes and a "rank" axis that is not split.
RULES: Mapping[str, tuple[str, ...]] = {
    "runs": ("run",),  # the runs of a sweep, for every array that differs between them
    # axes of parameters
    "layers": (),  # the axis of the scan over layers
    "embed": ("fsdp",),  # the model's width, as a side of a matrix
    "heads": ("model",),  # attention heads x their size
    "mlp": ("model",),  # inner width of the feed-forward layer
    "width": (),  # the model's width, of vectors and activations
    "vocabulary": (),  # no useful number divides 50257 or 50265; the width is split instead
    "rank": (),
    # axes of activations
    "batch": ("data", "fsdp"),  # token rows, outputs, prompts
    "logits": ("model",),
}


def named(*axes: str | None) -> dict[str, Any]:
    """Metadata of a parameter whose last axes have these logical names; None is no name."""
    return {_KEY: axes}


def name(variable: AnyVariable, axes: Axes) -> None:
    """Gives the last axes of an existing parameter logical names."""
    variable.set_metadata(_KEY, axes)


def has_names(variable: AnyVariable) -> bool:
    """Whether a parameter has logical names of ours."""
    return variable.get_metadata().get(_KEY) is not None


def names(variable: AnyVariable) -> Axes:
    """The logical name of every axis of a parameter.

    Leading axes that a stack of layers added to a named parameter are "layers". A parameter without
    names of ours has those of Flax's annotation (`nnx.with_partitioning`), or None for every axis.
    """
    ndim = len(variable.shape)
    metadata = variable.get_metadata()
    ours = metadata.get(_KEY)
    if ours is None:
        flax = next((found for key in FLAX_KEYS if (found := metadata.get(key))), None)
        if not isinstance(flax, tuple | PartitionSpec) or len(flax) != ndim:
            return (None,) * ndim
        return tuple(axis if isinstance(axis, str) else None for axis in flax)
    if len(ours) > ndim:  # inside the scan over layers
        return tuple(ours[len(ours) - ndim :])
    return ("layers",) * (ndim - len(ours)) + tuple(ours)


def of_model(model: nnx.Module) -> dict[str, Axes]:
    """The logical axes of every Variable of a model, by path.

    State without names has no axes here, so its sharding is that of a program's result, and what a step
    returns for the next one needs no second program.
    """
    return {path: _axes(leaf) for path, leaf in leaves(model).items()}


def _axes(leaf: Any) -> Axes:
    if not isinstance(leaf, nnx.Variable) or not hasattr(value(leaf), "shape"):
        return ()
    found = names(leaf) if value(leaf).shape else ()
    return found if kind(leaf) == "parameter" or any(found) else ()


def spec(axes: Axes, mesh_axes: tuple[str, ...]) -> PartitionSpec:
    """How an array with these logical axes is split over a mesh.

    Args:
      axes: of the array.
      mesh_axes: the axes that the mesh has; rules for others do not apply.

    Raises:
      ValueError: a name is not in `RULES`.
    """
    parts = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise InputError(f"unknown logical axis {axis!r} in {axes}; known are {sorted(RULES)}")
        over = tuple(a for a in RULES[axis] if a in mesh_axes) if axis else ()
        parts.append(over if len(over) > 1 else over[0] if over else None)
    return PartitionSpec(*parts)


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks the compiler to split an activation as its logical axes say.

    Outside a program for a mesh (see `Placement.jit`) x is returned unchanged.

    Args:
      x: the activation.
      axes: a logical name, or None, for each of its axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    constrained: Array = jax.lax.with_sharding_constraint(x, spec(axes, mesh.axis_names))
    return constrained


def split_over(axis: str) -> tuple[str, ...]:
    """The mesh axes over which a program splits this logical axis; () outside one for a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(part for part in RULES[axis] if part in mesh.axis_names)


def ways(axis: str) -> int:
    """Number of parts into which a program splits this logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[part] for part in split_over(axis))


def gathered(axes: Axes) -> Axes:
    """The axes of a parameter that every share of a batch has whole: not split as batches are."""
    batch = set(RULES["batch"])
    return tuple(None if axis is None or batch & set(RULES[axis]) else axis for axis in axes)


def constrain_parameters(state: _State) -> _State:
    """Asks the compiler to split a module's parameters, and so their gradients, as their axes say.

    For the parameters of one layer inside a scan, a tree of Variables: without it the compiler may
    stack gradients that are whole on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return state
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    constrained: _State = jax.tree.map(_constrain_parameter, state, is_leaf=is_variable)
    return constrained


def _constrain_parameter(leaf: Any) -> Any:
    if not isinstance(leaf, nnx.Variable) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return leaf.replace(constrain(leaf.get_raw_value(), *names(leaf)))
