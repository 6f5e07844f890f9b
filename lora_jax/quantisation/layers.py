"""Quantised layers: a layer whose weight is packed, and that unpacks it inside its call.

A quantised layer is of a subclass of the layer's class, made here for each class that has a LoRA layer.
Its call is that of the original class, with the unpacked weight in the place of the packed one. The
backward pass unpacks again: what it keeps of the weight are its packed arrays (`jax.checkpoint`), which
are there anyway. As for any class there is a LoRA layer for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact

from lora_jax import surgery
from lora_jax.errors import InputTypeError
from lora_jax.low_rank import layers as lora_layers
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.quantisation.weight import PackedWeight
from lora_jax.sharding.layout import Layout


class Quantised(nnx.Module):
    """Mixin of every quantised layer: the original's call with the weight unpacked."""

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of the original class."""
        return _with_unpacked(self, lambda layer, x: layer(x, *args, **kwargs), inputs)


class QuantisedTable(Quantised):
    """The same for tables, whose rows are unpacked when they are looked up."""

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of the original class, of a table that has the rows that are needed only."""
        name, weight = packed_weight(self)
        places = jnp.asarray(inputs)
        needed = jnp.zeros(
            1, int
        )  # of a table with one row; of no inputs, and of such as are refused
        if weight.matrix[0] > 1 and places.size and jnp.issubdtype(places.dtype, jnp.integer):
            needed = places.reshape(-1)
            places = jnp.arange(places.size).reshape(places.shape)
        rows = weight.rows(needed).astype(weight.dtype)
        return twin(self, {name: nnx.Param(rows)})(places, *args, **kwargs)

    def attend(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of the original class."""
        return _with_unpacked(self, lambda layer, x: layer.attend(x, *args, **kwargs), query)


class QuantisedLoRALayer(LoRALayer):
    """What the LoRA layer of a quantised layer has to say of its weight."""

    def weight_values(self) -> Inexact[Array, ...]:
        """The weight, unpacked in float32."""
        return packed_weight(self)[1].values()

    def weight_dtype(self) -> Any:
        """Type of the weight that the packed one stands for."""
        return jnp.dtype(packed_weight(self)[1].dtype)

    def weight_shape(self) -> Shape:
        """Shape of the weight that the packed one stands for, stack axes included."""
        return packed_weight(self)[1].shape

    def replace_weight(self, values: Inexact[Array, ...]) -> None:
        """Takes the update away and stores a weight of floating-point numbers, in place."""
        del self.lora
        surgery.restore(self)
        unpack_layer(self, values)

    def is_abstract(self) -> bool:
        """Whether the weight is a shape without values."""
        return packed_weight(self)[1].is_abstract()

    def layout(self) -> Layout:
        """How the stack's axes and the view's are named and split."""
        return packed_weight(self)[1].layout()


def packed_weight(layer: nnx.Module) -> tuple[str, PackedWeight]:
    """The packed weight of a quantised layer, and its name."""
    return next((k, v) for k, v in vars(layer).items() if isinstance(v, PackedWeight))


def is_quantised(layer: nnx.Module) -> bool:
    """Whether a layer, adapted or not, is quantised."""
    return isinstance(layer, Quantised)


def refuse_packed(layer: nnx.Module, path: str, method: str) -> None:
    """Raises InputTypeError for a quantised layer whose weight a method needs in floating-point numbers.

    Args:
      layer: that the method names.
      path: of it.
      method: its name, for the message.
    """
    if is_quantised(layer):
        raise InputTypeError(
            f"{path} is quantised, and {method} needs its weight in floating-point numbers: leave it out "
            "when the model is packed (lora_jax.quantise(..., exclude=...)), or read the model in a form "
            "that leaves tables and heads as they are (model.base_format='nf4' in place of 'stored')"
        )


def quantised_layers(model: nnx.Module) -> dict[str, nnx.Module]:
    """The quantised layers of a model by path, in path order."""
    modules = surgery.pretrained_modules(model)
    return {path: module for path, module in modules.items() if is_quantised(module)}


def unpacked(weight: PackedWeight) -> Float[Array, ...]:
    """The values of a packed weight in the type of the weight that it stands for."""
    return weight.values().astype(weight.dtype)


def unpack_layer(layer: nnx.Module, values: Inexact[Array, ...]) -> None:
    """Gives a quantised layer a weight of floating-point numbers, in place: it is of its original class.

    Args:
      layer: without an update.
      values: of the weight, in the type that it is to have.
    """
    name, weight = packed_weight(layer)
    variable, layout = nnx.Param(values), weight.layout()
    layout.give(variable, tuple(range(weight.ndim)))
    delattr(layer, name)
    setattr(layer, name, variable)
    surgery.restore(layer)


def twin(layer: nnx.Module, changes: dict[str, Any]) -> Any:
    """An object of the layer's original class with its attributes, but for some."""
    original = object.__new__(surgery.original_class(layer))
    vars(original).update(vars(layer), **changes)
    return original


def _with_unpacked(layer: nnx.Module, call: Callable[[Any, Any], Any], inputs: Any) -> Any:
    """Calls a layer of the original class; the backward pass unpacks the weight again."""
    name, weight = packed_weight(layer)
    structure, arrays = nnx.split(weight)

    @jax.checkpoint
    def run(arrays: Any, x: Any) -> Any:
        values = unpacked(nnx.merge(structure, arrays))
        return call(twin(layer, {name: nnx.Param(values)}), x)

    return run(arrays, inputs)


@functools.cache  # equal models have equal classes
def quantised_class(original: type[nnx.Module]) -> type[nnx.Module]:
    """The class of quantised layers for a class that has a LoRA layer; it has one too."""
    form = lora_layers.registered()[original]
    mixin = QuantisedTable if form.gathers else Quantised
    quantised = surgery.extended(mixin, original, of_base=True)
    metaclass: Any = type(form)
    of_quantised: type[LoRALayer] = metaclass(
        f"LoRA{quantised.__name__}", (QuantisedLoRALayer, form, quantised), {},
        pytree=original._pytree__is_pytree,
    )  # fmt: skip
    lora_layers.add_form(quantised, of_quantised)
    return quantised
