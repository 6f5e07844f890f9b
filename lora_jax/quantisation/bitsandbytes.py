"""Packed matrices as the tensors that bitsandbytes has for them in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.four_bits import BOOKS, MAP, NESTED, FourBits
from lora_jax.quantisation.int8 import Int8


def has(format: Format) -> bool:
    """Whether bitsandbytes has a packed form."""
    return isinstance(format, FourBits) or format == Int8()


def tensors(
    format: Format, arrays: Mapping[str, np.ndarray], shape: tuple[int, int], dtype: str
) -> dict[str, np.ndarray]:
    """The tensors of a matrix, by what comes behind the name of its layer.

    Args:
      format: that bitsandbytes has.
      arrays: as `Format.pack` gives them.
      shape: of the matrix, outputs and inputs.
      dtype: that it is unpacked to.
    """
    if not isinstance(format, FourBits):
        return {
            "weight": arrays["codes"].reshape(shape),
            "SCB": arrays["absmax"].reshape(-1),
            "weight_format": np.array(0, np.uint8),  # rows as they are
        }
    state: dict[str, object] = {
        "quant_type": format.code,
        "blocksize": format.block,
        "dtype": dtype,
        "shape": list(shape),
    }
    parts = {
        "weight": arrays["codes"].reshape(-1, 1),
        "weight.absmax": arrays["absmax"].reshape(-1),
        "weight.quant_map": BOOKS[format.code],
    }
    if format.double:
        parts["weight.nested_absmax"] = arrays["nested"]
        parts["weight.nested_quant_map"] = MAP
        state |= {
            "nested_blocksize": NESTED,
            "nested_dtype": "float32",
            "nested_offset": float(arrays["offset"][0]),
        }
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {**parts, f"weight.quant_state.bitsandbytes__{format.code}": text}
