"""Laying out what is inserted as the weight that it belongs to, also on meshes of the user's own.

A weight's axes may have logical names of ours (`axes.named`), those of Flax (`nnx.with_partitioning`), and
an array may be split over a mesh without any name. Factors take all three over, axis by axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from lora_jax.sharding import axes
from lora_jax.sharding.axes import AnyVariable, Axes

Shardings = tuple[NamedSharding | None, ...]
Result = TypeVar("Result")
_FLAX_RULES = ("sharding_rules", "mesh")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a weight are named and split.

    Attributes:
      names: logical name of every axis, or None.
      flax_key: of the metadata that holds the names, where they are Flax's and not ours.
      flax_rules: further metadata that says what Flax's names mean.
      sharding: of the array, if it is split over a mesh.
      split: mesh axes over which every axis is split.
    """

    names: Axes
    flax_key: str | None = None
    flax_rules: tuple[tuple[str, Any], ...] = ()
    sharding: NamedSharding | None = None
    split: tuple[Any, ...] = ()

    def view(self, stacked: int, ndim: int) -> Layout:
        """The layout of a view with `ndim` axes behind those of a stack.

        A view with other axes than the weight, such as a convolution's with an axis for groups, keeps
        the stack's names only.
        """
        if len(self.names) - stacked == ndim:
            return self
        none = (None,) * ndim
        return dataclasses.replace(
            self, names=self.names[:stacked] + none, split=self.split[:stacked] + none
        )

    def give(
        self,
        variable: AnyVariable,
        positions: Sequence[int | None],
        other: str | None = "rank",
    ) -> None:
        """Gives a new Variable the names and the sharding of the weight's axes, in place.

        Args:
          variable: of a factor, or of another form of the weight.
          positions: the weight's axis for each of its axes; None for one of its own.
          other: the logical name of those, where names are ours.
        """
        if self.flax_key is None:
            names = tuple(other if at is None else self.names[at] for at in positions)
            axes.name(variable, names)
        else:
            names = tuple(None if at is None else self.names[at] for at in positions)
            for key, value in ((self.flax_key, names), *self.flax_rules):
                variable.set_metadata(key, value)
        if (sharding := self.of_axes(positions)) is not None:
            variable.set_value(_placed(variable.get_raw_value(), sharding))

    def of_axes(self, positions: Sequence[int | None]) -> NamedSharding | None:
        """The sharding of an array with these of the weight's axes; None without one."""
        if self.sharding is None:
            return None
        spec = PartitionSpec(*(None if at is None else self.split[at] for at in positions))
        return NamedSharding(self.sharding.mesh, spec)


def layout_of(variable: AnyVariable) -> Layout:
    """The layout of a weight."""
    metadata = variable.get_metadata()
    key: str | None = None
    rules: tuple[tuple[str, Any], ...] = ()
    if not axes.has_names(variable):
        key = next((k for k in axes.FLAX_KEYS if metadata.get(k) is not None), None)
    if key is not None:
        rules = tuple((k, v) for k in _FLAX_RULES if (v := metadata.get(k)) is not None)
    sharding = sharding_of(variable.get_raw_value())
    split: tuple[Any, ...] = ()
    if sharding is not None:
        split = tuple(sharding.spec) + (None,) * (len(variable.shape) - len(sharding.spec))
    return Layout(axes.names(variable), key, rules, sharding, split)


def sharding_of(value: Any) -> NamedSharding | None:
    """How an array is split over a mesh; None for one on a single device, or a shape without values."""
    if isinstance(value, jax.core.Tracer):
        value = jax.typeof(value)  # the compiler decides about the others
        if not _is_explicit(getattr(value, "sharding", None)):
            return None
    elif not isinstance(value, jax.Array):
        return None
    sharding = value.sharding
    return sharding if isinstance(sharding, NamedSharding) else None


def automatically(
    function: Callable[..., Result], sharding: NamedSharding | Shardings | None, *arrays: Array
) -> Result:
    """Calls a function of arrays whose products the compiler may split as it likes.

    On a mesh with explicit axes every product over a split axis must say how its result is split; here
    only that of the function is said.

    Args:
      function: of the arrays.
      sharding: of its result; of several results one for each.
      *arrays: its arguments.
    """
    if not _is_explicit(sharding[0] if isinstance(sharding, tuple) else sharding):
        return function(*arrays)
    result: Result = jax.sharding.auto_axes(function, out_sharding=sharding)(*arrays)
    return result


def _is_explicit(sharding: Any) -> bool:
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and AxisType.Explicit in mesh.axis_types


def _placed(value: Any, sharding: NamedSharding) -> Any:
    if isinstance(value, jax.core.Tracer):
        return jax.sharding.reshard(value, sharding)
    return jax.device_put(value, sharding) if isinstance(value, jax.Array) else value
