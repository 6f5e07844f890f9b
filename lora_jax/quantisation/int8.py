"""Eight-bit integers with the largest magnitude of each row, or of each block of it, as scale.

With whole rows these are bitsandbytes' (LLM.int8, Dettmers et al. 2022) without its outliers, which are
a matter of activations: value = code absmax / 127.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from lora_jax.quantisation.formats import Format, Part, check_block, divided

STEP = np.float32(7.874015718698502e-3)  # 1 / 127 as bitsandbytes writes it


@dataclasses.dataclass(frozen=True)
class Int8(Format):
    """Eight-bit integers.

    Attributes:
      block: values that share a scale; None for the whole row.
    """

    name: ClassVar[str] = "int8"
    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None:
            check_block(self.block, self.name)

    def width(self, inputs: int) -> int:
        """Values of a block in a row of so many inputs."""
        return inputs if self.block is None else divided(self.name, inputs, self.block)

    def parts(self, inputs: int) -> dict[str, Part]:
        """Codes and scales."""
        return {
            "codes": Part(np.int8, "values", self.width(inputs)),
            "absmax": Part(np.float32, "block"),
        }

    def pack(self, rows: Float32[np.ndarray, "rows inputs"]) -> dict[str, np.ndarray]:
        """The arrays of a matrix."""
        blocks = rows.reshape(len(rows), -1, self.width(rows.shape[1]))
        absmax = np.abs(blocks).max(axis=-1)
        factor = np.float32(127) / np.where(absmax > 0, absmax, 1)
        return {"codes": np.round(blocks * factor[..., None]).astype(np.int8), "absmax": absmax}

    def largest(self, arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, "rows blocks"]:
        """Magnitudes that no value of a block exceeds; infinite where products with codes may be."""
        products = 128 * np.abs(arrays["absmax"].astype(np.float64))
        return np.where(products > np.finfo(np.float32).max, np.inf, products * STEP)

    def unpack(self, arrays: Mapping[str, Array], axis: int) -> Float[Array, ...]:
        """The values; see the base class."""
        codes = arrays["codes"].astype(jnp.float32)
        return codes * jnp.expand_dims(arrays["absmax"], axis + 1) * STEP
