"""The safetensors of a model folder: one file, or the shards that an index names.

Names, types and shapes are read from the headers; values only when they are asked for. Matrices that
bitsandbytes has packed have the names and shapes of those that they stand for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.gguf.container import SUFFIX
from lora_jax.models import bitsandbytes_files, config_json
from lora_jax.models.any_files import AnyFiles
from lora_jax.models.config_json import without_config
from lora_jax.models.gguf_files import GgufFiles
from lora_jax.models.layouts import LAYOUTS
from lora_jax.quantisation.formats import Format
from lora_jax.reading import read_object
from lora_jax.tensor_files import FLOATING, Tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_QUANTISED = (
    "Quantised bases are read as bitsandbytes packs them, and from GGUF; take the model so, or in float32, "
    "float16 or bfloat16"
)


class ModelFiles:
    """The tensors of a folder by published name.

    Attributes:
      folder: of the model.
      shapes: of every tensor; of a packed one those that it stands for.
    """

    def __init__(self, folder: Path, weights: str = WEIGHTS, index: str = INDEX):
        """Reads the headers, and the settings of packed matrices.

        Args:
          folder: of the model.
          weights: name of the file where there is one.
          index: name of the index where there are shards.

        Raises:
          MissingFileError: no weights, or a shard is missing.
          FileError, OSError: a file is broken, the index does not fit the shards, or both are there; a
            packed matrix is not whole, or config.json says that other ones are packed.
        """
        self.folder = folder
        self._files = _indexed(folder, weights, index) if (folder / index).exists() else {}
        if not self._files:
            path = folder / weights
            if not path.is_file():
                raise MissingFileError(f"{path} is missing. {_without_weights(folder)}")
            file = Tensors(path)
            self._files = dict.fromkeys(file.types, file)
        self._packed, beside = bitsandbytes_files.find(self._files)
        # Conv1D stores (in, out); bitsandbytes packs the rows of outputs all the same.
        self._turned = bool(self._packed) and _has_conv1d(folder)
        bitsandbytes_files.check_config(folder, {packed.bits for packed in self._packed.values()})
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: self._shape(name) for name in self._files if name not in beside
        }

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._packed:
            return self._files[name].shapes[name]
        shape = self._packed[name].rows, self._packed[name].inputs
        return shape[::-1] if self._turned else shape

    def kind(self, name: str) -> str:
        """How a tensor is stored."""
        packed = self._packed.get(name)
        return packed.kind if packed else f"type {self._files[name].types[name]}"

    def format(self, name: str) -> Format | None:
        """The packed form of a tensor; None for one that is not packed."""
        return self._packed[name].format if name in self._packed else None

    def unpacked_type(self, name: str) -> str | None:
        """The type that bitsandbytes rounds a packed tensor's values to."""
        return self._packed[name].type

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a packed tensor, as `Format.pack` gives them."""
        return self._packed[name].arrays()

    def check_types(self, names: Collection[str]) -> None:
        """Raises FileError if one of these tensors is neither of a floating type nor packed."""
        for name in names:
            if name in self._packed:
                continue
            file = self._files[name]
            if (kind := file.types[name]) not in FLOATING:
                raise FileError(
                    file.path, f"tensor {name}", f"type {kind}", f"one of {', '.join(FLOATING)}",
                    _QUANTISED,
                )  # fmt: skip

    def read(self, names: Collection[str], dtype: jax.typing.DTypeLike) -> dict[str, np.ndarray]:
        """The values of these tensors in a type, in the memory of the host.

        Raises:
          FileError: one of them is not finite, in the file or in this type.
        """
        values = {}
        plain = {name for name in names if name not in self._packed}
        for file in dict.fromkeys(self._files[name] for name in plain):
            for name, value in file.items(names=plain):
                values[name] = self._converted(name, value, dtype)
        for name in set(names) - plain:
            value = self._packed[name].values()
            values[name] = self._converted(name, value.T if self._turned else value, dtype)
        return values

    def _converted(self, name: str, value: np.ndarray, dtype: jax.typing.DTypeLike) -> np.ndarray:
        """A tensor's value in a type; raises FileError if it is not finite."""
        with np.errstate(over="ignore"):  # is found as infinity
            converted = value.astype(dtype, copy=False)
        if not np.isfinite(converted).all():
            if name not in self._packed:
                self._files[name].check_finite(name, value)
            raise self.error(name, "values too large", f"values of {jnp.dtype(dtype)}")
        return converted

    def error(self, name: str, found: str, expected: str, remedy: str = "") -> FileError:
        """The error for a tensor; give it to `raise`."""
        return FileError(self._files[name].path, f"tensor {name}", found, expected, remedy)


def _has_conv1d(folder: Path) -> bool:
    """Whether transformers' model has Conv1D in the place of linear layers."""
    name = config_json.read(folder).values.get("model_type")
    return isinstance(name, str) and name in LAYOUTS and not LAYOUTS[name].transposed


def open_files(place: Path) -> AnyFiles:
    """The tensors of a model folder or of a GGUF file, see `places.find`.

    Raises:
      MissingFileError, FileError, OSError: as `ModelFiles` and `GgufFiles`.
    """
    return GgufFiles(place) if place.suffix == SUFFIX else ModelFiles(place)


def _indexed(folder: Path, weights: str, index: str) -> dict[str, Tensors]:
    """The file of every tensor, as index and shards agree on."""
    path = folder / index
    if (folder / weights).exists():
        raise InputError(
            f"{folder} holds both {weights} and {index}, which names other files: it is not clear "
            "which weights are meant. Delete one of them"
        )
    named = read_object(path).text_by_name("weight_map")
    for tensor, name in named.items():
        if not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise FileError(
                path, f"weight_map.{tensor}", repr(name),
                "the plain name of a .safetensors file in the same folder",
            )  # fmt: skip
    if not named:
        raise FileError(path, "weight_map", "{}", "the files of all tensors")
    shards = sorted(set(named.values()))
    for name in shards:
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder / name} is missing, which {path} names. {_without_weights(folder)}"
            )
    files = {name: Tensors(folder / name) for name in shards}
    for name, file in files.items():
        for tensor in file.types:
            if tensor not in named:
                raise FileError(path, "weight_map", f"no {tensor}", f"it, as {name} has it")
            if named[tensor] != name:
                raise FileError(
                    path, f"weight_map.{tensor}", named[tensor],
                    f"{name} alone, which has such a tensor",
                )  # fmt: skip
    for tensor, name in named.items():
        if tensor not in files[name].types:
            raise FileError(path, f"weight_map.{tensor}", name, "a file that has such a tensor")
    return {tensor: files[name] for tensor, name in named.items()}


def _without_weights(folder: Path) -> str:
    """What a folder without its weights holds, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return without_config(folder)
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    return (
        f"The folder holds {present}. Weights are read from safetensors only; convert others (such as "
        "pytorch_model.bin) with transformers, where you trust the file: "
        "AutoModel.from_pretrained(folder or name on the hub).save_pretrained(new)"
    )
