"""The mixin of LoRA layers: what a layer with an update is, and what its class has to say of itself."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Inexact

from lora_jax import surgery
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.updates import WeightUpdate
from lora_jax.low_rank.weights import LayerWithWeight, WeightView
from lora_jax.sharding.layout import Layout, layout_of


def store(variable: nnx.Param[Array], values: Inexact[Array, ...]) -> None:
    """Gives a parameter other values, of its own type or of another, in place."""
    if values.dtype == variable.dtype:
        variable[...] = values  # split over a mesh as it was
    else:
        variable.set_value(values)


class WeightInModule(LayerWithWeight):
    """A weight that is a Variable of a module of Flax NNX."""

    def variable(self) -> nnx.Param[Array]:
        """The weight's Variable."""
        raise NotImplementedError

    def weight_values(self) -> Inexact[Array, ...]:
        """The weight as stored, stack axes included; numbers, where it is stored in another form."""
        return self.variable()[...]

    def replace_weight(self, values: Inexact[Array, ...]) -> None:
        """Takes the update away and stores another weight, in place: the layer is of its class again."""
        raise NotImplementedError

    def is_abstract(self) -> bool:
        """Whether the weight is a shape without values, as in a model from `nnx.eval_shape`."""
        return isinstance(self.variable().get_raw_value(), jax.ShapeDtypeStruct)

    def weight_dtype(self) -> Any:
        """Type of the weight as stored."""
        return self.variable().dtype

    def weight_shape(self) -> Shape:
        """Shape of the weight as stored, stack axes included."""
        return self.variable().shape

    def layout(self) -> Layout:
        """How the stack's axes and the view's are named and split: factors are laid out as their weight."""
        return layout_of(self.variable()).view(len(self.stack_shape()), self.roles().ndim)


# A Module first, so that an object's class can become one and go back.
class LoRALayer(nnx.Module, WeightInModule):
    """Mixin of every LoRA layer: the base layer's call, changed by the child `lora`.

    A LoRA layer names the weight, the roles of its axes, and how activations pass through a factor
    pair. What the child does with that is its own affair, so every kind of update works:

        @lora_jax.register(MyLinear)
        class LoRAMyLinear(lora_jax.LoRALayer, MyLinear):
            weight = "kernel"
            def roles(self): return lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,))
            def low_rank_output(self, inputs, a, b): return inputs @ a @ b

    However the weight is stored, A comes as (*batch, *inputs, rank) and B as (*batch, rank, *outputs).
    The other methods have defaults for a weight whose output axes come last in the result. All of it,
    with examples: docs/layers.md.
    """

    lora: WeightUpdate

    def declared_shapes(self) -> dict[str, Shape]:
        """Shapes of one layer's weight and bias by name, where its constructor's arguments tell them."""
        return {}

    def variable(self) -> nnx.Param[Array]:
        """The weight's Variable."""
        name = type(self).weight  # an attribute `weight` of the layer may be a Variable
        variable: nnx.Param[Array] = getattr(self, name)
        return variable

    def replace_weight(self, values: Inexact[Array, ...]) -> None:
        """Takes the update away and stores another weight, in place: the layer is of its class again."""
        store(self.variable(), values)
        del self.lora
        surgery.restore(self)

    def bias_values(self) -> Inexact[Array, ...] | None:
        """The bias as (*stack, *batch, *outputs); None without one."""
        bias = getattr(self, "bias", None)
        if bias is None:
            return None
        ordered = lambda one: self.bias_in_order_of_roles(one, self.view())  # noqa: E731
        for _ in self.stack_shape():
            ordered = jax.vmap(ordered)
        result: Array = ordered(bias[...])
        return result

    def __call__(self, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        """The base layer's result, changed by the update unless that is switched off."""
        base = super().__call__  # type: ignore[misc]
        if not self.lora.enabled:
            unchanged: Array = base(inputs, *args, **kwargs)
            return unchanged
        return self.lora.output(WeightView(self), inputs, lambda x: base(x, *args, **kwargs))
