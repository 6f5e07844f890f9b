"""The tensors of a GGUF file under transformers' names, as `model_files.ModelFiles` has those of a folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from lora_jax.errors import FileError
from lora_jax.gguf import blocks
from lora_jax.gguf.container import Container
from lora_jax.gguf.layouts import LAYOUTS
from lora_jax.models import gguf_config
from lora_jax.models.gguf_families import ROPE_FACTORS, halves, neighbours
from lora_jax.quantisation.ggml import Ggml

_AT_ONCE = 2**18  # values that are unpacked at once: they fit a processor's cache
_OTHER_TYPE = (
    "Take the model in Q8_0, Q4_K_M or F16, or make such a file with llama.cpp's llama-quantize"
)


class GgufFiles:
    """The tensors of a GGUF file by transformers' name.

    Attributes:
      folder: the file.
      container: what the file holds, by llama.cpp's names.
      shapes: of every tensor, (out, in) of a matrix.
    """

    def __init__(self, path: Path):
        """Reads the head of the file.

        Raises:
          MissingFileError, FileError, OSError: broken, of another architecture, with a setting that is
            not implemented, or with a tensor that the architecture does not have.
        """
        self.folder = path
        self.container = Container(path)
        architecture, self._family = gguf_config.family_of(self.container)
        config = gguf_config.from_container(self.container)
        self._heads = {
            "self_attn.q_proj": config.get("num_attention_heads", int),
            "self_attn.k_proj": config.get("num_key_value_heads", int),
        }
        self._stored: dict[str, str] = {}
        for name in self.container.tensors:
            if name == ROPE_FACTORS and self._family.permuted:
                continue  # the configuration has what it says
            published = self._family.published(name)
            if published is None:
                raise self.container.error(
                    f"tensor {name}", "this tensor", f"those of a {architecture} model",
                    "What it is for is not implemented",
                )  # fmt: skip
            self._stored[published] = name
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: self.container.tensors[stored].shape for name, stored in self._stored.items()
        }

    def check_types(self, names: Collection[str]) -> None:
        """Raises FileError if one of these tensors is of a type that is not read."""
        for name in names:
            kind = self.container.tensors[self._stored[name]].kind.name
            if kind not in blocks.READ:
                raise self.error(
                    name, f"type {kind}", f"one of {', '.join(blocks.READ)}", _OTHER_TYPE
                )

    def published(self) -> dict[str, str]:
        """transformers' names by llama.cpp's, in the order of the file."""
        return {stored: name for name, stored in self._stored.items()}

    def as_stored(self, name: str, values: np.ndarray) -> np.ndarray:
        """The values of a tensor as the file would have them: the inverse of reading, before packing.

        Args:
          name: transformers' name of the tensor.
          values: float32, in transformers' order.
        """
        if heads := self._permuted_heads(name):
            values = neighbours(values, heads)
        shift = self._family.shift(self._stored[name])
        return values + np.float32(shift) if shift else values

    def kind(self, name: str) -> str:
        """How a tensor is stored."""
        return f"type {self.container.tensors[self._stored[name]].kind.name}"

    def format(self, name: str) -> Ggml | None:
        """The packed form of a tensor; None for one that is not packed."""
        kind = self.container.tensors[self._stored[name]].kind.name
        return Ggml(kind) if kind in LAYOUTS else None

    def unpacked_type(self, name: str) -> str | None:
        """None: the file does not say to what a packed tensor's values are rounded."""
        return None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a packed tensor, as `Format.pack` gives them."""
        form = self.format(name)
        assert form is not None
        return form.from_blocks(self.packed(name))

    def packed(self, name: str) -> UInt8[np.ndarray, "rows blocks size"]:
        """The blocks of a matrix in transformers' order of rows, as bytes."""
        stored = self._stored[name]
        entry = self.container.tensors[stored]
        if self._family.shift(stored):
            raise self.error(name, "values that are stored shifted", "values as they are")
        raw = np.concatenate(list(self.container.blocks(stored, _AT_ONCE)))
        raw = raw.reshape(entry.shape[0], -1, entry.kind.size)
        return self._in_order(name, raw.reshape(len(raw), -1)).reshape(raw.shape)

    def read(self, names: Collection[str], dtype: jax.typing.DTypeLike) -> dict[str, np.ndarray]:
        """The values of these tensors in a type, in the memory of the host.

        Raises:
          FileError: one of them is not finite, in the file or in this type, or of a type that is not
            read.
        """
        self.check_types(names)
        return {name: self._value(name, jnp.dtype(dtype)) for name in dict.fromkeys(names)}

    def _value(self, name: str, dtype: np.dtype) -> np.ndarray:
        """The values of a tensor in transformers' order, unpacked a part at a time."""
        stored = self._stored[name]
        entry, shift = self.container.tensors[stored], self._family.shift(stored)
        result = np.empty((entry.blocks, entry.kind.values), dtype)
        first = 0
        for raw in self.container.blocks(stored, _AT_ONCE // entry.kind.values):
            part = blocks.dequantise(entry.kind.name, raw)
            part = part - np.float32(shift) if shift else part
            into = result[first : first + len(part)]
            with np.errstate(over="ignore"):  # is found as infinity
                into[:] = part
            if not np.isfinite(into).all():
                if np.isfinite(part).all():
                    raise self.error(name, "values too large", f"values of {dtype}")
                raise self.error(name, "values that are not finite", "finite numbers")
            first += len(part)
        return self._in_order(name, result.reshape(entry.shape))

    def _in_order(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The rows of a tensor in transformers' order."""
        if not (heads := self._permuted_heads(name)):
            return rows
        if len(rows) % (2 * heads):
            raise self.error(name, f"{len(rows)} rows", f"pairs of rows for {heads} heads")
        return halves(rows, heads)

    def _permuted_heads(self, name: str) -> int:
        """The heads whose rows llama.cpp's converter reorders; 0 if it leaves the tensor as it is."""
        if not self._family.permuted:
            return 0
        return next((n for part, n in self._heads.items() if part in name), 0)

    def error(self, name: str, found: str, expected: str, remedy: str = "") -> FileError:
        """The error for a tensor; give it to `raise`."""
        return self.container.error(f"tensor {self._stored[name]}", found, expected, remedy)
