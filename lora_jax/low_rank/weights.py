"""A weight as an update sees it: the roles of its axes, and what the layer does with them.

`LayerWithWeight` is what a layer has to say of itself. `WeightView` is the weight of such a layer, with
the axes of a stack of layers in front, or one part of a fused projection: updates need not know which.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Num

from lora_jax.low_rank.contraction import Contraction, Shape
from lora_jax.sharding.axes import Axes


@runtime_checkable
class LayerWithWeight(Protocol):
    """A layer whose weight can have an update; see `layers.LoRALayer` for what each member means."""

    gathers: bool

    def roles(self) -> Contraction:
        """Roles of the axes of one layer's weight."""
        ...

    def view(self) -> Shape:
        """Shape in which the roles see one layer's weight."""
        ...

    def stack_shape(self) -> Shape:
        """Sizes of the leading axes that a stack of layers added."""
        ...

    def axis_names(self) -> Axes:
        """Logical names of the axes of the stack and of the view."""
        ...

    def is_abstract(self) -> bool:
        """Whether the weight is a shape without values."""
        ...

    def weight_values(self) -> Inexact[Array, ...]:
        """The pre-trained weight as stored, or as numbers where it is stored otherwise."""
        ...

    def bias_values(self) -> Inexact[Array, ...] | None:
        """The bias of one layer, (*batch, *outputs); None without one."""
        ...

    def low_rank_output(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A B for activations as the layer takes them."""
        ...

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the weight's first output axis."""
        ...

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        ...


@dataclasses.dataclass(frozen=True)
class WeightView:
    """The weight of a layer, or a part of it along the first output axis.

    Attributes:
      layer: that holds the weight.
      part: start and size of the part; None for the whole weight.
    """

    layer: LayerWithWeight
    part: tuple[int, int] | None = None

    @property
    def gathers(self) -> bool:
        """Whether inputs are row numbers of the weight, as of an embedding table."""
        return self.layer.gathers

    @property
    def roles(self) -> Contraction:
        """Roles of the axes of `shape`: a stack's are batch axes."""
        return self.layer.roles().stacked(len(self.layer.stack_shape()))

    @property
    def shape(self) -> Shape:
        """Shape in which the roles see the weight."""
        shape = self.layer.stack_shape() + self.layer.view()
        if self.part is None:
            return shape
        axis = self.roles.outputs[0]
        return (*shape[:axis], self.part[1], *shape[axis + 1 :])

    @property
    def axis_names(self) -> Axes:
        """Logical name of every axis of `shape`, for sharding."""
        return self.layer.axis_names()

    def values(self) -> Float[Array, ...]:
        """The pre-trained weight in `shape`, float32."""
        whole = self.layer.weight_values().astype(jnp.float32)
        whole = whole.reshape(self.layer.stack_shape() + self.layer.view())
        return self.sliced(whole, self.roles.outputs[0])

    def low_rank_output(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A B for activations as the layer takes them, and factors in the type of the result.

        The A of a gathered weight is float32.
        """
        return self.layer.low_rank_output(inputs, a, b)

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the weight's first output axis."""
        return self.layer.output_axis(ndim)

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        return self.layer.on_outputs(values, ndim)

    def bias_on_outputs(self, ndim: int) -> Inexact[Array, ...] | None:
        """The layer's bias in such a shape; None without one."""
        bias = self.layer.bias_values()
        if bias is None:
            return None
        return self.on_outputs(self.sliced(bias, len(self.layer.roles().batch)), ndim)

    def parts(self, sizes: tuple[int, ...]) -> list[WeightView]:
        """The parts of these sizes along the first output axis, in order."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [WeightView(self.layer, part) for part in zip(starts, sizes, strict=True)]

    def sliced(self, values: Inexact[Array, ...], axis: int) -> Inexact[Array, ...]:
        """This part of an array that has the first output axis at `axis`."""
        if self.part is None:
            return values
        start, size = self.part
        return jax.lax.slice_in_dim(values, start, start + size, axis=axis)
