"""A weight as an update sees it: the roles of its axes, and what the layer does with them.

`LayerWithWeight` is what a layer has to say of itself. `WeightView` is the weight of such a layer, with
the axes of a stack of layers in front, or one part of a fused projection: updates need not know which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Num

from lora_jax.low_rank.contraction import Contraction, Shape
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.sharding.layout import Layout, automatically
from lora_jax.surgery import hide_methods


class LayerWithWeight:
    """What a layer with a weight has to say, so that the weight can have an update; with the defaults.

    Layers of Flax NNX are `lora_layer.LoRALayer`, those of Flax Linen `lora_jax.linen.LinenLayer`. The
    defaults are for a weight whose output axes come last in the result.

    Attributes:
      weight: name of the weight.
      gathers: whether inputs are row numbers of the weight. Then A starts at zero and not B, and has no
        dropout.
      in_all_linear: whether "all-linear" means layers of this kind too. Tables (`gathers`) it never does.
    """

    weight: ClassVar[str] = "kernel"
    gathers: ClassVar[bool] = False
    in_all_linear: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        hide_methods(cls, LayerWithWeight)

    def roles(self) -> Contraction:
        """Roles of the axes of the weight's view, without the axes of a stack."""
        raise NotImplementedError(
            f"{type(self).__name__} must say what the axes of `{type(self).weight}` are: write a method "
            "roles(self) that returns, for a weight (inputs, outputs), "
            "lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,)); see docs/layers.md"
        )

    def low_rank_output(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A B for activations as the base layer takes them.

        Args:
          inputs: of the layer, in the type of the result (row numbers, if the weight is gathered).
          a: (*batch, *inputs, rank), in that type too; float32, if the weight is gathered.
          b: (*batch, rank, *outputs), in the type of the result.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say how inputs pass through the factors: write a method "
            "low_rank_output(self, inputs, a, b) that returns, for a layer that computes "
            f"inputs @ {type(self).weight}, inputs @ a @ b, and that does to it what the layer does to "
            "its result (not the bias); see docs/layers.md"
        )

    def low_rank_logits(
        self, query: Inexact[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """(q B^T) A^T, for a table whose transpose is the output layer.

        Args:
          query: in the type of the logits.
          a: (rows, rank), in that type too.
          b: (rank, features), in that type too.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say what a tied output layer makes of the factors: write a "
            "method low_rank_logits(self, query, a, b) that returns (query @ b.T) @ a.T, and that does "
            "to it what the layer does to its logits; see docs/layers.md"
        )

    def by_token(self) -> bool:
        """Whether inputs (rows, tokens, ...) are treated token by token, see `lora_jax.pool`."""
        return False

    def check(self, settings: UpdateSettings) -> None:
        """Raises ValueError if this layer, as it was configured, cannot be adapted in this way."""

    def weight_values(self) -> Inexact[Array, ...]:
        """The weight as stored, stack axes included; numbers, where it is stored in another form."""
        raise NotImplementedError

    def bias_values(self) -> Inexact[Array, ...] | None:
        """The bias as (*stack, *batch, *outputs); None without one."""
        raise NotImplementedError

    def bias_in_order_of_roles(self, bias: Num[Array, ...], view: Shape) -> Num[Array, ...]:
        """The bias of one layer as stored, in the shape (*batch, *outputs) of a weight of this view."""
        batch, _, outputs = self.roles().sizes(view)
        return bias.reshape(batch + outputs)

    def weight_shape(self) -> Shape:
        """Shape of the weight as stored, stack axes included."""
        raise NotImplementedError

    def is_abstract(self) -> bool:
        """Whether the weight is a shape without values."""
        raise NotImplementedError

    def layout(self) -> Layout:
        """How the axes of the stack and of the view are named and split."""
        raise NotImplementedError

    def view(self) -> Shape:
        """Shape in which the roles see one layer's weight; a reshape of the weight."""
        return self.weight_shape()[len(self.stack_shape()) :]

    def weight_ndim(self) -> int:
        """Number of axes of one layer's weight as stored."""
        return self.roles().ndim

    def stack_shape(self) -> Shape:
        """Sizes of the leading axes that a scan or vmap over layers added to the weight."""
        shape = self.weight_shape()
        return shape[: len(shape) - self.weight_ndim()]

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the weight's first output axis."""
        return ndim - len(self.roles().outputs)

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        count = len(self.roles().batch)
        between = (1,) * (ndim - values.ndim)
        return values.reshape(*values.shape[:count], *between, *values.shape[count:])

    def feature_axes(self) -> Shape:
        """Input axes of one layer's view that hold features of the inputs: all but a convolution's window."""
        return self.roles().inputs

    def on_inputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *features) in a shape that broadcasts against inputs with `ndim` axes."""
        count = len(self.roles().batch)
        between = (1,) * (ndim - values.ndim)
        return values.reshape(*values.shape[:count], *between, *values.shape[count:])


hide_methods(LayerWithWeight, LayerWithWeight)


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
    def layout(self) -> Layout:
        """How the axes of `shape` are named and split."""
        return self.layer.layout()

    def automatically(
        self, function: Callable[..., Array], axes: Shape, *arrays: Inexact[Array, ...]
    ) -> Float[Array, ...]:
        """Calls a function of arrays, see `sharding.layout.automatically`.

        Args:
          function: of the arrays.
          axes: of `shape`, that its result has.
          *arrays: its arguments.
        """
        return automatically(function, self.layout.of_axes(axes), *arrays)

    def values(self) -> Float[Array, ...]:
        """The pre-trained weight in `shape`, float32, or float64 if it is."""
        stored = self.layer.weight_values()
        whole = stored.astype(jnp.promote_types(stored.dtype, jnp.float32))
        shape = self.layer.stack_shape() + self.layer.view()
        if whole.shape != shape:
            whole = whole.reshape(shape)
        return self.sliced(whole, self.roles.outputs[0])

    def low_rank_output(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """x A B for activations as the layer takes them, and factors in the type of the result.

        The A of a gathered weight is float32.
        """
        return self.layer.low_rank_output(inputs, a, b)

    def low_rank_logits(
        self, query: Inexact[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """(q B^T) A^T for a query and factors in the type of the logits."""
        return self.layer.low_rank_logits(query, a, b)

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the weight's first output axis."""
        return self.layer.output_axis(ndim)

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        return self.layer.on_outputs(values, ndim)

    @property
    def feature_axes(self) -> Shape:
        """Input axes of `shape` that hold features of the inputs."""
        stack = len(self.layer.stack_shape())
        return tuple(stack + axis for axis in self.layer.feature_axes())

    def on_inputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *features) in a shape that broadcasts against inputs with `ndim` axes."""
        return self.layer.on_inputs(values, ndim)

    def bias(self) -> Inexact[Array, ...] | None:
        """The layer's bias, or this part of it, as (*stack, *batch, *outputs); None without one."""
        bias = self.layer.bias_values()
        return None if bias is None else self.sliced(bias, len(self.roles.batch))

    def bias_on_outputs(self, ndim: int) -> Inexact[Array, ...] | None:
        """The layer's bias in such a shape; None without one."""
        bias = self.bias()
        return None if bias is None else self.on_outputs(bias, ndim)

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
