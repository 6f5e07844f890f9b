"""A packed weight: the arrays of a format, arranged beside each other in a layer.

A matrix of a layer that contracts its inputs has its blocks along the inputs, and its outputs last, as
the layer's own kernel has them: (*stack, *batch, blocks, values, *outputs). A table has its blocks along
the features of a row, and its rows first, so that single rows can be unpacked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from lora_jax.errors import InputError, InputTypeError
from lora_jax.gguf.layouts import grouped
from lora_jax.low_rank.contraction import Contraction, Shape
from lora_jax.quantisation.formats import Extent, Format, Part
from lora_jax.sharding.layout import Layout, layout_of
from lora_jax.surgery import WeightModule


class PackedPart(nnx.Param[Array]):
    """One of the arrays of a packed weight. It never trains, and it keeps its type."""


class PackedWeight(WeightModule):
    """A weight in a packed form, in the place of a layer's parameter.

    Attributes:
      format: of the arrays, which are attributes by their names.
      roles: of the axes of one layer's weight.
      layer_shape: of one layer's weight, without the axes of a stack.
      table: whether rows are looked up.
      dtype: type of the weight that it stands for.
    """

    def __init__(
        self,
        format: Format,
        roles: Contraction,
        layer_shape: Shape,
        arrays: Mapping[str, Any],
        *,
        table: bool,
        dtype: str,
    ):
        self.format = format
        self.roles = roles
        self.layer_shape = layer_shape
        self.table = table
        self.dtype = dtype
        for name, array in arrays.items():
            self.set_array(name, array)

    def set_array(self, name: str, array: Any) -> None:
        """Gives it an array (or a shape) of a name, in place."""
        setattr(self, name, PackedPart(array))

    def arrays(self) -> dict[str, PackedPart]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in self._parts()}

    def _parts(self) -> dict[str, Part]:
        return self.format.parts(self.matrix[1])

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows, and values of a row, of one matrix: outputs and inputs, or rows and features."""
        _, inputs, outputs = self.roles.sizes(self.layer_shape)
        sides = math.prod(outputs), math.prod(inputs)
        return sides[::-1] if self.table else sides

    @property
    def stack(self) -> Shape:
        """Sizes of the axes of a stack of layers."""
        codes = self.arrays()["codes"]
        own = len(self.arranged_shape(self._parts()["codes"]))
        return tuple(codes.shape[: codes.ndim - own])

    @property
    def shape(self) -> Shape:
        """Shape of the weight that it stands for."""
        return self.stack + self.layer_shape

    @property
    def ndim(self) -> int:
        """Number of axes of that."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values of that."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in self.arrays().values())

    def is_abstract(self) -> bool:
        """Whether the arrays are shapes without values."""
        return isinstance(self.arrays()["codes"].get_raw_value(), jax.ShapeDtypeStruct)

    def __getitem__(self, _: Any) -> Any:
        """Raises InputTypeError: single values are not stored."""
        raise InputTypeError(
            f"this weight is packed ({self.format}) and has no values to index: layer.kernel.values() "
            "unpacks all of them (embedding.values() of a table), lora_jax.dequantise(model) those of a model"
        )

    def values(self) -> Float[Array, ...]:
        """The values in float32, in the shape of the weight that it stands for."""
        arrays = {name: part[...] for name, part in self.arrays().items()}
        batch, inputs, outputs = self.roles.sizes(self.layer_shape)
        leads = self.stack + batch
        unpack: Callable[[Mapping[str, Array]], Array] = self._unpacked
        for _ in leads:
            unpack = jax.vmap(unpack)
        ordered = unpack(arrays).reshape(*leads, *inputs, *outputs)
        roles, n = self.roles, len(self.stack)
        order = roles.batch + roles.inputs + roles.outputs
        places = (n + order.index(axis) for axis in range(roles.ndim))
        return jnp.transpose(ordered, (*range(n), *places))

    def _unpacked(self, arrays: Mapping[str, Array]) -> Array:
        """The values of one matrix from its arrays, rows first or last as they are."""
        if not self.table:
            return self.format.unpack(arrays, 0)
        return self.format.unpack(self._in_blocks(arrays), 1)

    def rows(self, indices: Int[Array, "*shape"]) -> Float[Array, "*shape features"]:
        """Rows of a table, unpacked alone; NaN for numbers that it does not have, as of any table."""
        stored = self._in_blocks({name: part[...] for name, part in self.arrays().items()})
        arrays = self.format.without_matrix_parts(stored, 1)
        # Scales of other rows are NaN, and so are their products with any code.
        chosen = {
            name: jnp.take(array, indices.reshape(-1), axis=0) for name, array in arrays.items()
        }
        return self.format.unpack(chosen, 1).reshape(*indices.shape, self.matrix[1])

    def _in_blocks(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays of a table with an axis of blocks in every row."""
        parts = self._parts()
        return {
            name: grouped(array, 1, array.shape[1] // int(parts[name].count))  # type: ignore[arg-type]
            if parts[name].extent == "values"
            else array
            for name, array in arrays.items()
        }

    def layout(self) -> Layout:
        """How the axes of the weight that it stands for are named and split, as those of the codes are."""
        codes = layout_of(self.arrays()["codes"])
        places = {
            weight: own for own, weight in enumerate(self._axes("values")) if weight is not None
        }
        count = len(self.shape)
        names = tuple(codes.names[places[i]] if i in places else None for i in range(count))
        split = codes.split and tuple(
            codes.split[places[i]] if i in places else None for i in range(count)
        )
        return dataclasses.replace(codes, names=names, split=split)

    def lay_out(self, layout: Layout) -> None:
        """Gives the arrays the names and the sharding of the weight's axes, in place."""
        parts = self._parts()
        for name, array in self.arrays().items():
            layout.give(array, self._axes(parts[name].extent), other=None)

    def _axes(self, extent: Extent) -> tuple[int | None, ...]:
        """The axis of the weight that each axis of an array of some extent is; None for one of its own."""
        n, roles = len(self.stack), self.roles.stacked(len(self.stack))
        lead = (*range(n), *roles.batch[n:])
        if extent == "matrix":
            return (*lead, None)
        if self.table:
            return (*lead, *roles.inputs, None)
        along = roles.inputs[0] if len(roles.inputs) == 1 else None
        blocks = self.matrix[1] // self.format.width(self.matrix[1])
        values = self._parts()["codes"].count
        assert isinstance(values, int)
        # Blocks are split over a mesh if they can be as often as their values; else the values are.
        of_blocks = blocks & -blocks >= values & -values
        inputs = (along, None) if of_blocks else (None, along)
        return (*lead, *(inputs if extent == "values" else inputs[:1]), *roles.outputs)

    def arranged_shape(self, part: Part) -> Shape:
        """Shape of one of the arrays for one layer."""
        batch, _, outputs = self.roles.sizes(self.layer_shape)
        rows, inputs = self.matrix
        own = part.shape(rows, inputs // self.format.width(inputs))
        if part.extent == "matrix":
            return (*batch, *own)
        if self.table:
            return (rows, math.prod(own[1:]))
        return (*batch, *own[1:], *outputs)

    def to_rows(self) -> list[dict[str, np.ndarray]]:
        """The arrays of every matrix on this host, as `Format.pack` gives them; stack axes first."""
        parts, leads = self._parts(), self.stack + self.roles.sizes(self.layer_shape)[0]
        whole = {name: np.asarray(part[...]) for name, part in self.arrays().items()}
        flat = {
            name: array.reshape(-1, *array.shape[len(leads) :]) for name, array in whole.items()
        }
        return [
            {name: self._as_rows(array[i], parts[name]) for name, array in flat.items()}
            for i in range(math.prod(leads))
        ]

    def _as_rows(self, array: np.ndarray, part: Part) -> np.ndarray:
        rows, inputs = self.matrix
        shape = part.shape(rows, inputs // self.format.width(inputs))
        if part.extent != "matrix" and not self.table:
            array = np.moveaxis(array.reshape(*shape[1:], rows), -1, 0)
        return np.ascontiguousarray(array.reshape(shape))


def arranged(weight: PackedWeight, matrices: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """The inverse of `PackedWeight.to_rows`: arrays for a weight of the same description.

    Args:
      weight: abstract or not.
      matrices: of every one, stack axes first.
    """
    parts = weight.format.parts(weight.matrix[1])
    leads = weight.stack + weight.roles.sizes(weight.layer_shape)[0]
    arrays = {}
    for name, part in parts.items():
        each = [np.asarray(matrix[name]) for matrix in matrices]
        if part.extent != "matrix" and not weight.table:
            each = [np.moveaxis(array, 0, -1) for array in each]
        arrays[name] = np.stack(each).reshape(*weight.stack, *weight.arranged_shape(part))
    assert math.prod(leads) == len(matrices)
    return arrays


def float_matrices(weight: PackedWeight, values: Any) -> list[Float32[np.ndarray, "rows inputs"]]:
    """The matrices of a weight in floating-point numbers, one row for each output (or of the table).

    Raises:
      ValueError: the values are those of a function that is traced, and not known yet.
    """
    if isinstance(values, jax.core.Tracer):
        raise InputError(
            "weights are packed from their values, which a function inside jax.jit, nnx.eval_shape or "
            "another transformation does not have yet: pack outside of it. A model in shapes is quantised as "
            "such: lora_jax.quantise(nnx.eval_shape(make))"
        )
    roles = weight.roles.stacked(len(weight.stack))
    batch, inputs, outputs = roles.sizes(weight.shape)
    ordered = np.transpose(np.asarray(values), roles.batch + roles.inputs + roles.outputs)
    flat = ordered.reshape(math.prod(batch), math.prod(inputs), math.prod(outputs))
    matrices = flat if weight.table else flat.swapaxes(1, 2)
    return [np.ascontiguousarray(m, np.float32) for m in matrices]


def value_counts(model: nnx.Module) -> dict[str, int]:
    """How many values of a weight each array of a packed one stands for, by path; 0 for its scales."""
    counts: dict[str, int] = {}
    for keys, module in nnx.iter_modules(model):
        if isinstance(module, PackedWeight):
            path = "/".join(map(str, keys))
            counts |= {
                f"{path}/{name}": module.size if name == "codes" else 0 for name in module.arrays()
            }
    return counts
