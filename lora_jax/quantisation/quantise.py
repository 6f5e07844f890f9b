"""Packing the layers of a model that a rule names, and unpacking them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax import patterns, surgery
from lora_jax.arguments import MODEL, Model, takes
from lora_jax.checks import floating
from lora_jax.errors import InputError, InputTypeError
from lora_jax.low_rank import limits
from lora_jax.low_rank import targets as names
from lora_jax.low_rank.layers import lora_layer_of
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.sharing import shared_weights
from lora_jax.low_rank.targets import Exclude, Target
from lora_jax.low_rank.weights import WeightView
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.layers import (
    packed_weight,
    quantised_class,
    quantised_layers,
    unpack_layer,
)
from lora_jax.quantisation.packing import fill, packed_arrays, set_shapes
from lora_jax.quantisation.registry import FORMATS, format_of
from lora_jax.quantisation.weight import PackedWeight, float_matrices

_NO_LAYER = "only the weights of layers are packed, such as nnx.Linear, nnx.Einsum and nnx.Embed"
_ANY = LoRASettings.from_arguments({"rank": 1, "alpha": 1.0}, "")


@takes(model=MODEL)
def quantise(
    model: Model,
    targets: Target | Sequence[Target] = names.ALL_LINEAR,
    format: str | Format = "nf4",
    *,
    exclude: Exclude = None,
) -> Model:
    """Returns a model whose chosen layers hold their weights packed; the other arrays are shared.

    A quantised layer unpacks its weight in its call, one layer at a time; its weight never trains and
    has no gradient. Methods are inserted as into any model. Works on abstract models too, whose packed
    arrays are shapes.

        base = lora_jax.quantise(model)  # NF4, every linear layer but heads
        adapted = lora_jax.lora("all-linear", rank=64).insert(base, key)

    Args:
      model: pre-trained, without a method.
      targets: the layers to pack, as in `lora_jax.lora`: paths, ends of paths, regular expressions,
        classes of layers, or "all-linear".
      format: a name (`registry.FORMATS`), such as nf4, or a `Format` with settings of its own.
      exclude: what the targets shall not mean.

    Raises:
      ValueError: a rule names no layer, a method is inserted, a layer's weight is packed already, is not
        finite, is shared with another layer, or blocks do not divide its inputs.
      TypeError: a layer of a class that cannot be packed.
    """
    if (path := surgery.changed_module(model)) is not None:
        raise InputError(
            "quantise takes the pre-trained model, and a method was inserted into this one "
            f"({path or 'the model'} is changed); quantise first, then insert"
        )
    packed = nnx.clone(model)
    modules = surgery.pretrained_modules(packed)
    chosen, form = chosen_layers(modules, targets, exclude), format_of(format)
    for path in chosen:
        pack_layer(modules[path], form, path)
    return packed


def chosen_layers(
    modules: Mapping[str, nnx.Module],
    targets: Target | Sequence[Target],
    exclude: Exclude = None,
) -> list[str]:
    """The paths of the layers that targets choose, in path order.

    Args:
      modules: pre-trained ones by path.
      targets: see `quantise`.
      exclude: see `quantise`.
    """
    chosen: set[str] = set()
    heads: list[str] = []
    for target in names.several(targets, "targets"):
        if target in FORMATS and not patterns.paths_of(target, list(modules), "target"):
            raise InputError(
                f"the target {target!r} is the name of a form and of no layer; write format={target!r}"
            )
        found = names.matching(target, modules, "target", _NO_LAYER)
        if target == names.ALL_LINEAR:
            heads = [path for path in found if names.is_head(path)]
            found = [path for path in found if path not in heads]
        chosen.update(found)
    for target in names.several(exclude, "exclude"):
        without = names.matching(target, modules, "exclude", _NO_LAYER)
        if not chosen.intersection(without):
            raise InputError(f"the exclude rule {target!r} excludes nothing that the targets name")
        chosen.difference_update(without)
    if not chosen:
        of_heads = (
            f": {names.ALL_LINEAR!r} leaves heads out, and takes {patterns.some(heads)} for one by its name. "
            "Name it as a target to pack it"
        )
        raise InputError(f"no layer is left to quantise{of_heads if heads else ''}")
    shared = shared_weights(modules)
    if odd := sorted(chosen & shared.keys()):
        raise InputError(f"{odd[0]} cannot be quantised: {shared[odd[0]]}")
    return sorted(chosen)


def pack_layer(layer: nnx.Module, format: Format, path: str) -> None:
    """Turns a layer into its quantised form, in place.

    Args:
      layer: of a class that has a LoRA layer.
      format: of the packed weight.
      path: of the layer, for messages.
    """
    name, weight = describe(layer, format, path)
    variable = getattr(layer, name)
    if not isinstance(variable.get_raw_value(), jax.ShapeDtypeStruct):
        values = float_matrices(weight, variable[...])
        if odd := sum(int((~np.isfinite(matrix)).sum()) for matrix in values):
            raise InputError(
                f"{path}/{name} has {odd:,} of {variable.size:,} values that are not finite, which no packed "
                "form holds: take the model's weights again, or leave the layer out (exclude)"
            )
        fill(weight, packed_arrays(weight, values, f"{path}/{name}"))
    replace(layer, name, weight)


def describe(layer: nnx.Module, format: Format, path: str) -> tuple[str, PackedWeight]:
    """The name of a layer's weight, and the packed weight that takes its place.

    Its arrays are shapes, laid out as the weight.
    """
    path = path or "the model"
    if hasattr(layer, "without_lora_layer"):
        raise InputTypeError(
            f"{path} is of Flax Linen, whose own modules read their weights; only models of Flax NNX are "
            "quantised"
        )
    form = lora_layer_of(layer)
    if isinstance(getattr(layer, form.weight, None) if form else None, PackedWeight):
        raise InputError(
            f"{path} is quantised already: leave it out (exclude), or pack its values anew, "
            "lora_jax.quantise(lora_jax.dequantise(model), ...)"
        )
    if form is None or not (form.in_all_linear or form.gathers):
        raise InputTypeError(
            f"{path} is a {type(layer).__name__}; layers that are one product with a matrix, and tables, "
            "can be quantised: leave it out (exclude)"
        )
    if reason := limits.refusal(layer, _ANY, path):
        raise InputError(f"{path} cannot be quantised: {reason}")
    with limits.as_lora_layer(layer, path) as lora_layer:
        assert isinstance(lora_layer, LoRALayer)
        view = WeightView(lora_layer)
        stack, roles = lora_layer.stack_shape(), lora_layer.roles()
        own = view.shape[len(stack) :]
        dtype, layout = str(lora_layer.weight_dtype()), lora_layer.layout()
    if 0 in (shape := (*stack, *own)):
        raise InputError(
            f"{path} cannot be quantised: its weight of shape {shape} has no values. Leave it out (exclude)"
        )
    weight = PackedWeight(format, roles, own, {}, table=form.gathers, dtype=dtype)
    set_shapes(weight, stack, layout, path)
    return form.weight, weight


def replace(layer: nnx.Module, name: str, weight: PackedWeight) -> None:
    """Puts a packed weight in the place of a layer's own, in place."""
    kind = quantised_class(type(layer))
    delattr(layer, name)
    setattr(layer, name, weight)
    surgery.become(layer, kind)


@takes(model=MODEL)
def dequantise(model: Model, dtype: Any = None) -> Model:
    """Returns a model in which every quantised layer has its weight in floating-point numbers again.

    A stack of layers that was cut is one stack again.

    Args:
      model: with quantised layers, and no method.
      dtype: of those weights; None for the type that each had.

    Raises:
      ValueError: no layer is quantised, a method is inserted, or `dtype` is of other numbers or cannot
        hold the values.
    """
    dtype = floating("dtype", dtype)
    if (path := surgery.changed_module(model)) is not None:
        raise InputError(
            f"{path or 'the model'} is adapted; merge makes a model of floating-point numbers of it"
        )
    result = nnx.clone(model)
    layers = quantised_layers(result)
    if not layers:
        raise InputError(
            "the model has no quantised layer: its weights are floating-point numbers already"
        )
    for path, layer in layers.items():
        weight = packed_weight(layer)[1]
        values = weight.values().astype(weight.dtype if dtype is None else dtype)
        if not isinstance(values, jax.core.Tracer) and not jnp.isfinite(values).all():
            raise InputError(
                f"{path or 'the model'} has values that {values.dtype} cannot hold; take bfloat16 or float32"
            )
        unpack_layer(layer, values)
    surgery.undivide(result)
    return result


@dataclasses.dataclass(frozen=True)
class Errors:
    """How much packing changed a weight.

    Attributes:
      relative: root of the mean square of the difference, relative to that of the weight.
      largest: difference.
      bits: for each value.
    """

    relative: float
    largest: float
    bits: float


@takes(model=MODEL)
def errors(model: nnx.Module, original: nnx.Module) -> dict[str, Errors]:
    """How much packing changed the weights of the quantised layers, by path.

    Args:
      model: quantised.
      original: the model that it was made of.

    Raises:
      ValueError: the original has no weight of that shape at a path.
    """
    there, result = surgery.pretrained_modules(original), {}
    for path, layer in quantised_layers(model).items():
        name, weight = packed_weight(layer)
        before = getattr(there.get(path), name, None)
        if before is None or before.shape != weight.shape:
            raise InputError(f"the original has no weight {path}/{name} of shape {weight.shape}")
        was = np.asarray(before[...], np.float64)
        differences = np.asarray(weight.values(), np.float64) - was
        scale = np.sqrt(np.mean(was**2))
        result[path] = Errors(
            relative=float(np.sqrt(np.mean(differences**2)) / scale) if scale else 0.0,
            largest=float(np.abs(differences).max()),
            bits=8 * weight.nbytes / weight.size,
        )
    return result
