"""Making the arrays of a packed weight: their shapes first, then values that are packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Shape
from lora_jax.quantisation.registry import name_of
from lora_jax.quantisation.weight import PackedWeight, arranged
from lora_jax.sharding.layout import Layout


def set_shapes(weight: PackedWeight, stack: Shape, layout: Layout, path: str) -> None:
    """Gives a packed weight its arrays as shapes, in place.

    Args:
      weight: without arrays.
      stack: sizes of the axes of a stack of layers.
      layout: of the weight that it stands for.
      path: of the layer, for messages.

    Raises:
      ValueError: blocks do not divide the inputs.
    """
    try:
        parts = weight.format.parts(weight.matrix[1])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for name, part in parts.items():
        shape = jax.ShapeDtypeStruct((*stack, *weight.arranged_shape(part)), part.dtype)
        weight.set_array(name, shape)
    weight.lay_out(layout)


def packed_arrays(
    weight: PackedWeight, matrices: Sequence[Float32[np.ndarray, "rows inputs"]], what: str
) -> dict[str, Any]:
    """The arrays of a packed weight for its matrices, of which all are finite once they are unpacked.

    Args:
      weight: of shapes or not.
      matrices: see `float_matrices`.
      what: is packed, for messages.

    Raises:
      ValueError: values that are not finite, or too large for the form or the type of the weight.
    """
    packed = []
    for matrix in matrices:
        with np.errstate(over="ignore", invalid="ignore"):  # is found as infinity
            packed.append(weight.format.pack(matrix))
        if odd := weight.format.not_finite(packed[-1], weight.dtype):
            form = f"{name_of(weight.format)} in {weight.dtype}"
            raise InputError(
                f"{what} has values that are not finite or too large for {form}: "
                f"{odd:,} of {matrix.size:,} are infinite or NaN once they are packed. Pack it in nf4, whose "
                "scales are float32, or keep it in floating-point numbers"
            )
    return arranged(weight, packed)


def fill(weight: PackedWeight, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts arrays into a packed weight of shapes, in place, split over a mesh as its layout says."""
    layout = weight.layout()
    for name, part in weight.arrays().items():
        part.set_value(jnp.asarray(arrays[name]))
    if layout.sharding is not None:
        weight.lay_out(layout)
