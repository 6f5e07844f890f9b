"""Merging updates into packed weights: what is merged is packed again, which is another rounding."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax import surgery
from lora_jax.arguments import MODEL, Model, takes
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import add_to_bias, is_mergeable, merge, merged_values
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.layers import packed_weight, quantised_layers, unpack_layer
from lora_jax.quantisation.measured import Measured, measured
from lora_jax.quantisation.packing import fill, packed_arrays, set_shapes
from lora_jax.quantisation.registry import format_of
from lora_jax.quantisation.weight import PackedWeight, float_matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repacked(Measured):
    """What became of one packed matrix.

    Attributes:
      path: of its layer.
      number: of the matrix in a stack of layers; 0 outside of one.
      format: that it is packed in now.
      same: whether its arrays are those of the base.
    """

    path: str
    number: int
    format: Format
    same: bool


@takes(model=MODEL)
def merge_packed(
    model: Model, format: str | Format | None = None, *, tables: bool = True
) -> tuple[Model, list[Repacked]]:
    """Returns a copy whose updates are merged into packed weights, and what packing them again did.

    What is packed are the unpacked values of the base and the update, added in float32. That is another
    rounding, as large as the first one, and can undo a small update: look at the report. `merge` rounds
    nothing, and gives floating-point numbers. A weight without an update stays as it is where the form
    is the same. Layers that are not packed are merged as `merge` does it.

        packed, report = merge_packed(adapted)  # in the form that the base has
        worst = max(one.relative for one in report)

    Args:
      model: adapted, over a quantised base.
      format: a name (`registry.FORMATS`), or a `Format`; None for the form that each weight has.
      tables: whether packed tables are packed again; else they become floating-point numbers.

    Returns:
      The model without updates, and a report of every packed matrix.

    Raises:
      ValueError: no layer is quantised, blocks do not divide its inputs, the form is not packed here, or
        cannot hold the result.
    """
    merged = nnx.clone(model)
    layers = quantised_layers(merged)
    if not layers:
        raise InputError(
            "the model has no quantised layer to merge into; lora_jax.merge gives a model of floating-point "
            "numbers, and lora_jax.quantise packs that"
        )
    form = None if format is None else format_of(format)
    report: list[Repacked] = []
    updated = adapted_layers(merged)
    for path, layer in layers.items():
        name, weight = packed_weight(layer)
        total = weight.values()
        if path in updated:
            total = merged_values(updated[path], path)
            add_to_bias(updated[path], path)
            delattr(layer, "lora")
            surgery.restore(layer)
        if weight.table and not tables:
            unpack_layer(layer, total.astype(weight.dtype))
            continue
        again, rows = _packed_again(weight, total, form or weight.format, path)
        report += rows
        setattr(layer, name, again)
    return (merge(merged) if is_mergeable(merged) else merged), report


def _packed_again(
    weight: PackedWeight, total: Float[Array, ...], form: Format, path: str
) -> tuple[PackedWeight, list[Repacked]]:
    """The weight of other values in a form, and what packing did to each of its matrices."""
    before, after = weight.values(), total
    again, same = weight, form == weight.format and bool(jnp.array_equal(total, before))
    if not same:
        roles, shape, kind = weight.roles, weight.layer_shape, weight.dtype
        again = PackedWeight(form, roles, shape, {}, table=weight.table, dtype=kind)
        set_shapes(again, weight.stack, weight.layout(), path)
        fill(
            again,
            packed_arrays(again, float_matrices(again, total), f"the merged weight of {path}"),
        )
        after = again.values()
    each = zip(*(float_matrices(weight, values) for values in (total, before, after)), strict=True)
    own = math.prod(weight.roles.sizes(weight.layer_shape)[0])  # matrices of one layer
    rows = [
        Repacked(path=path, number=i // own, format=form, same=same, **measured(*values))
        for i, values in enumerate(each)
    ]
    return again, rows
