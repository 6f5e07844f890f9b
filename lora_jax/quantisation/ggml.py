"""GGUF's packed types as they are stored: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the K types Q4_K, Q5_K, Q6_K.

The arrays hold the bytes of the blocks, one array for each field, so that both ways lose nothing. What the
fields are, and what they mean, is `gguf.layouts`'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from lora_jax.errors import InputError, brief
from lora_jax.gguf import layouts
from lora_jax.gguf.layouts import LAYOUTS
from lora_jax.gguf.packing import PACK
from lora_jax.quantisation.formats import Format, Part, divided


@dataclasses.dataclass(frozen=True)
class Ggml(Format):
    """A packed type of GGUF.

    Attributes:
      kind: its name, such as Q4_K.
    """

    name: ClassVar[str] = "ggml"
    kind: str = "Q8_0"

    def __post_init__(self) -> None:
        if self.kind not in LAYOUTS:
            raise InputError(f"kind must be one of {', '.join(LAYOUTS)}; got {brief(self.kind)}")

    def width(self, inputs: int) -> int:
        """Values of a block."""
        return divided(self.kind, inputs, layouts.width(self.kind))

    def parts(self, inputs: int) -> dict[str, Part]:
        """The fields of a block; a field of one element is of extent `block`."""
        self.width(inputs)
        return {
            name: Part(dtype, "block") if count == 1 else Part(dtype, "values", count)
            for name, dtype, count in LAYOUTS[self.kind].fields
        }

    def pack(self, rows: Float32[np.ndarray, "rows inputs"]) -> dict[str, np.ndarray]:
        """The arrays of a matrix, rounded as ggml's reference does."""
        if self.kind not in PACK:
            raise InputError(
                f"{self.kind} is read from files that have it; weights are packed as "
                f"{', '.join(PACK)}, nf4, fp4 or int8"
            )
        blocks = rows.reshape(len(rows), -1, self.width(rows.shape[1]))
        return PACK[self.kind](blocks)

    def unpack(self, arrays: Mapping[str, Array], axis: int) -> Float[Array, ...]:
        """The values; see the base class."""
        values: Array = LAYOUTS[self.kind].product(arrays, axis)
        return values

    def largest(self, arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, "rows blocks"]:
        """Magnitudes that no value of a block exceeds."""
        scale, least = LAYOUTS[self.kind].most
        most: np.ndarray = scale * np.abs(arrays["scale"].astype(np.float64))
        return most + least * np.abs(arrays["least"].astype(np.float64)) if least else most

    def from_blocks(self, raw: UInt8[np.ndarray, "rows blocks size"]) -> dict[str, np.ndarray]:
        """The arrays from the bytes of a file."""
        return layouts.fields(self.kind, raw)

    def to_blocks(self, arrays: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "rows blocks size"]:
        """The inverse of `from_blocks`."""
        return layouts.blocks(self.kind, arrays)
