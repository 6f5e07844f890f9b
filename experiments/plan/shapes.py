"""Arrays of a plan in shapes, with the places where they would lie."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from ml_collections import ConfigDict

from lora_jax.data.batch import Batch, Inputs
from lora_jax.sharding import axes
from lora_jax.sharding.placement import Placement


def abstract_batch(
    config: ConfigDict, rows: int, placement: Placement, runs: int | None = None
) -> Batch:
    """A packed batch of the plan in shapes; with `runs` one of each run, along a first axis."""
    mesh = placement.mesh
    lead: tuple[int, ...] = () if runs is None else (runs,)
    names: axes.Axes = ("runs",) * len(lead)
    of_rows, of_slots = (
        NamedSharding(mesh, axes.spec((*names, *split), mesh.axis_names))
        for split in (("batch", None), (None,))
    )
    field: Any = jax.ShapeDtypeStruct((*lead, rows, config.length), jnp.int32, sharding=of_rows)
    slots: Any = [
        jax.ShapeDtypeStruct((*lead, rows * config.outputs), dtype, sharding=of_slots)
        for dtype in (jnp.int32, jnp.int32, jnp.int32, jnp.float32)
    ]
    return Batch(Inputs(*[field] * 4), *slots)


def first_run(tree: PyTree) -> PyTree:
    """The shapes of one run out of those of several."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    """The shapes with their shardings."""

    def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, shardings)
