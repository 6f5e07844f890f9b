"""The values in GGUF's blocks, as they are read from files."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from lora_jax.gguf.layouts import LAYOUTS, fields

_PLAIN = ("F32", "F16", "BF16")
READ = (*_PLAIN, *LAYOUTS)  # names of the types whose values are read


def dequantise(
    kind: str, raw: UInt8[np.ndarray, "blocks size"]
) -> Float32[np.ndarray, "blocks width"]:
    """The values of blocks of any type in `READ`, bit for bit those of ggml.

    Args:
      kind: of the blocks.
      raw: their bytes.
    """
    if kind == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if kind == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    # Scales of broken files may be infinite; who reads the values looks for what is not finite.
    with np.errstate(invalid="ignore", over="ignore"):
        values: np.ndarray = LAYOUTS[kind].product(fields(kind, raw), 0)
    return values
