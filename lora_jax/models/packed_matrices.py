"""Matrices as bitsandbytes packs them into several tensors: their arrays here, and their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.four_bits import BOOKS, FourBits, scales_on_host
from lora_jax.quantisation.int8 import STEP, Int8
from lora_jax.tensor_files import Tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """A matrix of a folder, one row for each output.

    Attributes:
      name: of its weight.
      files: that hold its tensors, by the tensor's name.
      rows: of it.
      inputs: values of a row.
      format: of its arrays.
      bits: of a code.
    """

    bits: ClassVar[int]
    name: str
    files: Mapping[str, Tensors]
    rows: int
    inputs: int
    format: Format

    @property
    def type(self) -> str | None:
        """The type that bitsandbytes unpacks it to; None where it does not say."""
        return None

    @property
    def kind(self) -> str:
        """How it is packed, for messages."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays, as `Format.pack` gives them, where the blocks divide its rows."""
        raise NotImplementedError

    def values(self) -> Float32[np.ndarray, "rows inputs"]:
        """Its values, rounded as bitsandbytes rounds them; blocks may go on from row to row."""
        raise NotImplementedError

    def _tensor(self, name: str) -> np.ndarray:
        """The values of one of its tensors; raises FileError for one that is not finite."""
        file = self.files[name]
        value: np.ndarray = next(value for _, value in file.items(names={name}))
        file.check_finite(name, value)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class FourBitMatrix(PackedMatrix):
    """One of four bits.

    Attributes:
      format: code, block and double quantisation.
      dtype: that it is unpacked to.
      offset: of double quantisation.
    """

    bits: ClassVar[int] = 4
    format: FourBits
    dtype: str
    offset: float

    @property
    def type(self) -> str | None:
        """The type that bitsandbytes unpacks it to."""
        return self.dtype

    @property
    def kind(self) -> str:
        """How it is packed."""
        double = " with double quantisation" if self.format.double else ""
        return f"{self.format.code} in blocks of {self.format.block}{double}"

    def _parts(self) -> dict[str, np.ndarray]:
        """Codes and scales as they are stored."""
        parts = {"codes": self._tensor(self.name), "absmax": self._tensor(f"{self.name}.absmax")}
        if self.format.double:
            parts["nested"] = self._tensor(f"{self.name}.nested_absmax")
            parts["offset"] = np.array([self.offset], np.float32)
        return parts

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays."""
        shapes = self.format.shapes(self.rows, self.inputs)
        return {name: value.reshape(shapes[name]) for name, value in self._parts().items()}

    def values(self) -> Float32[np.ndarray, "rows inputs"]:
        """Its values."""
        parts, count = self._parts(), self.rows * self.inputs
        packed = parts["codes"].reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[:count]
        values = BOOKS[self.format.code][codes]
        scales = np.repeat(scales_on_host(parts), self.format.block)[:count]
        # Who reads the values looks for infinity.
        with np.errstate(over="ignore", invalid="ignore"):
            values *= scales
            rounded = values.astype(jnp.dtype(self.dtype)).astype(np.float32)
        return rounded.reshape(self.rows, self.inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Matrix(PackedMatrix):
    """One of LLM.int8."""

    bits: ClassVar[int] = 8
    format: Int8

    @property
    def kind(self) -> str:
        """How it is packed."""
        return "int8 by rows"

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays."""
        parts = {
            "codes": self._tensor(self.name),
            "absmax": self._tensor(f"{self.name.removesuffix('weight')}SCB"),
        }
        shapes = self.format.shapes(self.rows, self.inputs)
        return {name: value.reshape(shapes[name]) for name, value in parts.items()}

    def values(self) -> Float32[np.ndarray, "rows inputs"]:
        """Its values."""
        arrays = self.arrays()
        values = arrays["codes"].reshape(self.rows, self.inputs).astype(np.float32)
        with np.errstate(over="ignore"):  # who reads the values looks for infinity
            values *= arrays["absmax"]
        values *= STEP
        return values
