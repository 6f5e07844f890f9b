"""Logical axes of parameters and activations, and the one table that maps them to mesh axes.

A model names the axes of its parameters where it makes them (`nnx.Linear(..., kernel_metadata=
named("embed", "mlp"))`) and those of its activations with `constrain`. What a method inserts takes the
names of the weight it belongs to. Nothing else knows how a model is sharded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array

Axes = tuple[str | None, ...]

_KEY = "logical_axes"  # not Flax's own `out_sharding`: that one shards while a model is being made

# Logical axis -> mesh axes. A product of a "heads" or "mlp" axis is summed over `model`, as in
# Megatron-LM (Shoeybi et al. 2019); "embed" is gathered before use, as in ZeRO-3 (Rajbhandari et al.
# 2020). Factors of a low-rank update have their kernel's axes and a "rank" axis that is not split.
RULES: Mapping[str, tuple[str, ...]] = {
    "runs": ("run",),  # of a sweep: of all that differs between its runs
    # of parameters
    "layers": (),  # the axis of a scan
    "embed": ("fsdp",),  # model width, as a side of a matrix
    "heads": ("model",),  # attention heads x their size
    "mlp": ("model",),  # inner width of the feed-forward layer
    "width": (),  # model width, of vectors and activations
    "vocabulary": (),  # 50257 and 50265 divide by nothing; the width is split instead
    "rank": (),
    # of activations
    "batch": ("data", "fsdp"),  # token rows, outputs, prompts
    "logits": ("model",),
}


def named(*axes: str | None) -> dict[str, Any]:
    """Metadata of a parameter whose last axes have these names; None is an axis without one."""
    return {_KEY: axes}


def name(variable: nnx.Variable, axes: Axes) -> None:
    """Names the last axes of a parameter that exists already."""
    variable.set_metadata(_KEY, axes)


def names(variable: nnx.Variable) -> Axes:
    """A name for every axis of a parameter.

    Leading axes that were added to a named parameter (by a stack of layers) are "layers"; without
    names of ours those of Flax's own annotation count; else all are None.
    """
    ndim = len(variable.shape)
    metadata = variable.get_metadata()
    found = metadata.get(_KEY)
    if found is None:
        found = metadata.get("out_sharding") or metadata.get("sharding_names")
        if not isinstance(found, tuple | PartitionSpec) or len(found) != ndim:
            return (None,) * ndim
        return tuple(axis if isinstance(axis, str) else None for axis in found)
    if len(found) > ndim:  # inside the scan over layers
        return tuple(found[len(found) - ndim :])
    return ("layers",) * (ndim - len(found)) + tuple(found)


def of_model(model: nnx.Module) -> dict[str, Axes]:
    """Names of the axes of every Variable of a model, by path."""
    return {
        "/".join(map(str, path)): names(leaf) if isinstance(leaf, nnx.Variable) else ()
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }


def spec(axes: Axes, mesh_axes: tuple[str, ...]) -> PartitionSpec:
    """The partition of an array with these logical axes over a mesh.

    Raises:
      ValueError: a name is not in `RULES`.
    """
    parts = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r} in {axes}; known are {sorted(RULES)}")
        found = tuple(a for a in RULES[axis] if a in mesh_axes) if axis else ()
        parts.append(found if len(found) > 1 else found[0] if found else None)
    return PartitionSpec(*parts)


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks the compiler to split an activation as its logical axes say.

    Does nothing outside a program that was made for a mesh (`Placement.jit`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, mesh.axis_names))


def kept(state: Any) -> Any:
    """A module's state whose parameters, and so their gradients, are split as their axes say.

    For the parameters of one layer inside a scan: left to itself the compiler may stack whole
    gradients.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return state
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return jax.tree.map(_kept, state, is_leaf=is_variable)


def _kept(leaf: Any) -> Any:
    if not isinstance(leaf, nnx.Variable) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return leaf.replace(constrain(leaf.get_raw_value(), *names(leaf)))
