"""What a packed form of a weight is: the arrays that it consists of, and the way from values and back.

Values are taken in blocks of consecutive inputs of one output (of consecutive features of one row of a
table), which share a scale. A `Format` turns the blocks of a matrix into arrays (`pack`, on the host) and
arrays into values (`unpack`, inside of compiled functions). How the arrays lie in a layer is `weight`'s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Shaped

from lora_jax.errors import InputError, brief

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # sizes that bitsandbytes has
Extent = Literal["values", "block", "matrix"]
Packed = Mapping[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the arrays of a packed matrix.

    Attributes:
      dtype: of its elements.
      extent: what it has elements for: `values` of every block, every `block`, or the whole `matrix`.
      count: elements for each of these; of a matrix, a function of its number of blocks.
    """

    dtype: Any
    extent: Extent
    count: int | Callable[[int], int] = 1

    def shape(self, rows: int, blocks: int) -> tuple[int, ...]:
        """Of the array for a matrix of that many rows, of that many blocks each."""
        if self.extent == "matrix":
            assert not isinstance(self.count, int)
            return (self.count(rows * blocks),)
        assert isinstance(self.count, int)
        return (rows, blocks, self.count) if self.extent == "values" else (rows, blocks)


@dataclasses.dataclass(frozen=True)
class Format:
    """Base of the packed forms. Frozen and hashable: it is part of a program, not of its data.

    Attributes:
      name: as configs and files have it.
    """

    name: ClassVar[str]

    def width(self, inputs: int) -> int:
        """Values of a block in a row of so many inputs.

        Raises:
          ValueError: blocks do not divide the row.
        """
        raise NotImplementedError

    def parts(self, inputs: int) -> dict[str, Part]:
        """The arrays by name, for rows of so many inputs."""
        raise NotImplementedError

    def pack(self, rows: Float32[np.ndarray, "rows inputs"]) -> dict[str, np.ndarray]:
        """The arrays of a matrix, given as one row for each output; shapes as `Part.shape` says."""
        raise NotImplementedError

    def unpack(self, arrays: Mapping[str, Array], axis: int) -> Float[Array, ...]:
        """The values, float32, where the arrays have the axis of blocks at `axis`.

        Args:
          arrays: with the axis of values directly behind that of blocks, and those of a whole matrix
            without either. With `axis` 0 the axes of outputs are behind both, with 1 that of rows is
            in front.
          axis: of the blocks, 0 or 1.

        Returns:
          As an array of extent `values`, with all values of a block.
        """
        raise NotImplementedError

    def largest(self, arrays: Packed) -> Float[np.ndarray, "rows blocks"]:
        """Magnitudes that no value of a block exceeds, from the scales alone.

        Infinite or NaN where something that a value is computed from may be.

        Args:
          arrays: of a matrix, as `pack` gives them.
        """
        raise NotImplementedError

    def not_finite(self, arrays: Packed, dtype: str) -> int:
        """How many values of a matrix are NaN or infinite when they are unpacked into a type.

        The scales tell which rows may have some, and only these are unpacked: of good weights none.

        Args:
          arrays: of a matrix, as `pack` gives them.
          dtype: of the weight.
        """
        fits = self.largest(arrays) <= float(jnp.finfo(dtype).max)
        suspect = np.flatnonzero(~fits.all(axis=1))  # NaN fits nothing
        if not len(suspect):
            return 0
        parts = self.without_matrix_parts(
            {name: jnp.asarray(array) for name, array in arrays.items()}, 1
        )
        rows = {name: array[suspect] for name, array in parts.items()}
        values = self.unpack(rows, 1).astype(dtype)
        return int(values.size - jnp.isfinite(values).sum())

    def without_matrix_parts(self, arrays: Mapping[str, Array], axis: int) -> Mapping[str, Array]:
        """Equal arrays for `unpack`, none of which belongs to a matrix as a whole."""
        return arrays

    def shapes(self, rows: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays of a matrix."""
        blocks = inputs // self.width(inputs)
        return {name: part.shape(rows, blocks) for name, part in self.parts(inputs).items()}

    def bits(self, rows: int, inputs: int) -> float:
        """Bits for each value of a matrix."""
        shapes, parts = self.shapes(rows, inputs), self.parts(inputs)
        size = sum(math.prod(s) * np.dtype(parts[n].dtype).itemsize for n, s in shapes.items())
        return float(8 * size / (rows * inputs))


def divided(name: str, inputs: int, width: int) -> int:
    """Returns `width` if blocks of it divide a row.

    Raises:
      ValueError: they do not.
    """
    if inputs % width:
        fitting = [str(w) for w in (32, 64, 128, 256, 512, 1024) if inputs % w == 0]
        hint = f"blocks of {', '.join(fitting)} would" if fitting else "int8 needs no blocks"
        raise InputError(
            f"{name} packs blocks of {width} values, which do not divide rows of {inputs} inputs; {hint}. "
            "Choose another block or format, or leave the layer out (exclude)"
        )
    return width


def check_block(block: Any, name: str) -> None:
    """Raises InputError for a block size that the format does not have."""
    if isinstance(block, bool) or block not in BLOCKS:
        known = ", ".join(map(str, BLOCKS))
        raise InputError(f"block of {name} must be one of {known}; got {brief(block)}")
