"""The metadata of a GGUF file that is about its model: every key is used, or is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.errors import FileError, brief
from lora_jax.gguf.container import Container
from lora_jax.reading import Record

_MOST_SIZE = 2**24

# What changes the model and of which nothing but this is implemented; other keys are refused too.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),  # says that rows are permuted, as they are
}
_REMEDIES = {
    "expert_count": "Mixtures of experts are not implemented",
    "expert_used_count": "Mixtures of experts are not implemented",
    "pooling_type": "Models of embeddings are not implemented: take the language model",
}


class Settings:
    """The keys of the architecture, without its name before them; notes which were used."""

    def __init__(self, container: Container, architecture: str):
        self._container, self._prefix = container, f"{architecture}."
        self._record = Record(container.path, container.metadata)
        self._left = {key for key in container.metadata if key.startswith(self._prefix)}

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as it was written: the shortest one with its value in float32."""
        self._left.discard(self._prefix + key)
        if default is not None and self._prefix + key not in self._record.values:
            return default
        value = self._record.get(self._prefix + key, float)
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return float(str(single)) if float(single) == value else value

    def text(self, key: str, default: str) -> str:
        """A string."""
        self._left.discard(self._prefix + key)
        return self._record.get(self._prefix + key, str, default)

    def size(self, key: str, default: int | None = None, most: int = _MOST_SIZE) -> int:
        """A positive integer."""
        self._left.discard(self._prefix + key)
        if default is not None and self._prefix + key not in self._record.values:
            return default
        return self._record.integer(self._prefix + key, 1, most)

    def window(self, default: int) -> int:
        """Tokens that a layer attends to at most; 0: all."""
        key = f"{self._prefix}attention.sliding_window"
        self._left.discard(key)
        return self._record.integer(key, 0) if key in self._record.values else default

    def anything(self, key: str) -> Any:
        """A value of any type; None without the key."""
        self._left.discard(self._prefix + key)
        return self._record.values.get(self._prefix + key)

    def error(self, key: str, found: str, expected: str, remedy: str = "") -> FileError:
        """The error for a key; give it to `raise`."""
        return self._container.error(self._prefix + key, found, expected, remedy)

    def finish(self) -> None:
        """Raises FileError for keys with a value that is not implemented, and for keys not used."""
        for key, allowed in _FIXED.items():
            value = self._record.values.get(self._prefix + key, allowed[0])
            self._left.discard(self._prefix + key)
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise self.error(
                    key, brief(value), repr(allowed[0]),
                    _REMEDIES.get(key, "Other values are not implemented"),
                )  # fmt: skip
        for key in sorted(self._left):
            raise self.error(
                key.removeprefix(self._prefix), brief(self._record.values[key]), "no such key",
                "It may change the model, and what it says is not implemented",
            )  # fmt: skip
