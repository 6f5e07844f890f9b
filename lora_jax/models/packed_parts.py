"""The tensors that make up a packed matrix, checked as they are taken."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from lora_jax.errors import FileError
from lora_jax.tensor_files import Tensors

REMEDY = "Save the model again with transformers and bitsandbytes, or take it in float32, float16 or bfloat16"


class Parts:
    """The tensors of one matrix, which are checked as they are taken."""

    def __init__(self, files: Mapping[str, Tensors], small: Mapping[str, np.ndarray], weight: str):
        self.files, self._small, self.weight = files, small, weight

    def check(self, name: str, kind: str, count: int, why: str = "") -> None:
        """Raises FileError if a tensor is not there, or of another type or number of values."""
        if name not in self.files:
            beside = next(other for other in self.files if self._is_part(other))
            raise FileError(
                self.files[beside].path, f"tensor {name}", "nothing",
                f"it, as there is {beside}", f"A part of a packed matrix is missing. {REMEDY}",
            )  # fmt: skip
        file = self.files[name]
        shape, found = file.shapes[name], file.types[name]
        if found != kind:
            raise self.error(name, f"type {found}", f"{kind}{why}")
        if int(np.prod(shape, dtype=object)) != count or len(shape) > 2:
            raise self.error(name, f"shape {shape}", f"{count:,} values{why}")

    def _is_part(self, name: str) -> bool:
        stem = self.weight.removesuffix("weight")
        return name.startswith(f"{self.weight}.") or name in (f"{stem}SCB", f"{stem}weight_format")

    def check_map(self, name: str, numbers: Float32[np.ndarray, " codes"]) -> None:
        """Raises FileError if a tensor has other numbers than these, but for their last bits."""
        self.check(name, "F32", len(numbers))
        if not np.allclose(self._small[name].reshape(-1), numbers, rtol=1e-6, atol=0):
            raise self.error(name, "other numbers", "those that bitsandbytes packs with")

    def small(self, name: str) -> np.ndarray:
        """The values of a small tensor."""
        return self._small[name].reshape(-1)

    def error(self, name: str, found: str, expected: str, remedy: str = REMEDY) -> FileError:
        """The error for a tensor; give it to `raise`."""
        return FileError(self.files[name].path, f"tensor {name}", found, expected, remedy)
