"""Reading safetensors that come from outside: names, types and shapes first, values when they are wanted.

What `lora_jax.reading` says of other files holds of these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.errors import FileError
from lora_jax.reading import AGAIN, check_file, named

FLOATING = ("F64", "F32", "F16", "BF16")  # safetensors' names of the types that weights may have
NUMBERS = (*FLOATING, "BOOL", *(f"{kind}{bits}" for kind in "UI" for bits in (8, 16, 32, 64)))


class Tensors:
    """The tensors of a safetensors file: their names, types and shapes, and then their values.

    Attributes:
      path: of the file.
      metadata: the strings that the file's header has beside the tensors.
      types: safetensors' name of each tensor's type.
      shapes: of each tensor.
    """

    def __init__(self, path: Path, remedy: str = AGAIN):
        """Reads the header.

        Raises:
          MissingFileError, FileError, OSError: no such file, truncated, or not safetensors.
        """
        check_file(path)
        try:
            path.open("rb").close()  # safetensors says of all errors that there is no such file
        except OSError as error:
            raise named(error, path) from error
        self.path, self._remedy = path, remedy
        with self._open("np") as file:
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self.types: dict[str, str] = {name: s.get_dtype() for name, s in slices.items()}
            self.shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}

    def check_types(self, allowed: Collection[str] = FLOATING, names: Collection[str] = ()) -> None:
        """Raises FileError if a tensor has another type than these.

        Args:
          allowed: safetensors' names of types.
          names: of the tensors that count; all if there are none.
        """
        for name in names or self.types:
            if self.types[name] not in allowed:
                raise self.error(name, f"type {self.types[name]}", f"one of {', '.join(allowed)}")

    def items(
        self, framework: str = "np", names: Collection[str] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Names and values, one by one.

        Args:
          framework: "flax" gives jax arrays.
          names: of those that are wanted; None: all.
        """
        with self._open(framework) as file:
            for name in self.types:
                if names is None or name in names:
                    yield name, file.get_tensor(name)

    def read(self) -> dict[str, np.ndarray]:
        """All values by name; raises FileError for one that is not finite."""
        values = {}
        for name, value in self.items():
            self.check_finite(name, value)
            values[name] = value
        return values

    def check_finite(self, name: str, value: Any) -> None:
        """Raises FileError if a floating-point tensor has NaN or infinite values."""
        if self.types[name] in FLOATING and (count := not_finite(value)):
            raise self.error(
                name, f"{count:,} of {value.size:,} values that are not finite", "finite numbers"
            )

    def error(self, name: str, found: str, expected: str) -> FileError:
        """The error for a tensor; give it to `raise`."""
        return FileError(self.path, f"tensor {name}", found, expected, self._remedy)

    def _open(self, framework: str) -> Any:
        try:
            return safe_open(self.path, framework=framework)
        except SafetensorError as error:
            raise FileError(
                self.path, "", f"no readable safetensors ({error})",
                "a whole safetensors file; this one is truncated or of another kind", self._remedy,
            ) from error  # fmt: skip
        except OSError as error:
            raise named(error, self.path) from error


def not_finite(value: Any) -> int:
    """Number of values that are NaN or infinite."""
    return int(value.size - np.count_nonzero(np.isfinite(np.asarray(value))))
