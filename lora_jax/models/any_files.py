"""What the files of a model have in common, whatever kind they are of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from lora_jax.errors import FileError
from lora_jax.quantisation.formats import Format


@runtime_checkable
class AnyFiles(Protocol):
    """The tensors of a model under the names of transformers; some of its matrices may be packed.

    Attributes:
      folder: of the model, or its file.
      shapes: of every tensor.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]

    def check_types(self, names: Collection[str]) -> None:
        """Raises FileError if one of these tensors is of a type that is not read."""
        ...

    def read(self, names: Collection[str], dtype: jax.typing.DTypeLike) -> dict[str, np.ndarray]:
        """The values of these tensors in a type; raises FileError for one that is not finite."""
        ...

    def kind(self, name: str) -> str:
        """How a tensor is stored, for messages."""
        ...

    def format(self, name: str) -> Format | None:
        """The packed form of a tensor; None for one that is not packed."""
        ...

    def unpacked_type(self, name: str) -> str | None:
        """The type that a packed tensor's values are rounded to; None where the files do not say."""
        ...

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a packed tensor, as `Format.pack` gives them."""
        ...

    def error(self, name: str, found: str, expected: str, remedy: str = "") -> FileError:
        """The error for a tensor; give it to `raise`."""
        ...
