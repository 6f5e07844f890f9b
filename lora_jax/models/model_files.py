"""The safetensors of a model folder: one file, or the shards that an index names.

Names, types and shapes are read from the headers; values only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.gguf.container import SUFFIX
from lora_jax.models.config_json import without_config
from lora_jax.models.gguf_files import GgufFiles
from lora_jax.reading import read_object
from lora_jax.tensor_files import FLOATING, Tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_QUANTISED = (
    "Bases are read in floating point only; quantised ones come later: take the model in float32, "
    "float16 or bfloat16"
)


class ModelFiles:
    """The tensors of a folder by published name.

    Attributes:
      folder: of the model.
      shapes: of every tensor.
    """

    def __init__(self, folder: Path):
        """Reads the headers.

        Raises:
          MissingFileError: no weights, or a shard is missing.
          FileError, OSError: a file is broken, the index does not fit the shards, or both are there.
        """
        self.folder = folder
        self._files = _indexed(folder) if (folder / INDEX).exists() else {}
        if not self._files:
            path = folder / WEIGHTS
            if not path.is_file():
                raise MissingFileError(f"{path} is missing. {_without_weights(folder)}")
            file = Tensors(path)
            self._files = dict.fromkeys(file.types, file)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: file.shapes[name] for name, file in self._files.items()
        }

    def check_types(self, names: Collection[str]) -> None:
        """Raises FileError if one of these tensors is not of a floating type."""
        for name in names:
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
        wanted, values = set(names), {}
        for file in dict.fromkeys(self._files[name] for name in names):
            for name, value in file.items(names=wanted):
                with np.errstate(over="ignore"):  # is found as infinity
                    converted = value.astype(dtype, copy=False)
                if not np.isfinite(converted).all():
                    file.check_finite(name, value)
                    raise self.error(name, "values too large", f"values of {jnp.dtype(dtype)}")
                values[name] = converted
        return values

    def error(self, name: str, found: str, expected: str, remedy: str = "") -> FileError:
        """The error for a tensor; give it to `raise`."""
        return FileError(self._files[name].path, f"tensor {name}", found, expected, remedy)


AnyFiles = ModelFiles | GgufFiles


def open_files(place: Path) -> AnyFiles:
    """The tensors of a model folder or of a GGUF file, see `places.find`.

    Raises:
      MissingFileError, FileError, OSError: as `ModelFiles` and `GgufFiles`.
    """
    return GgufFiles(place) if place.suffix == SUFFIX else ModelFiles(place)


def _indexed(folder: Path) -> dict[str, Tensors]:
    """The file of every tensor, as index and shards agree on."""
    path = folder / INDEX
    if (folder / WEIGHTS).exists():
        raise InputError(
            f"{folder} holds both {WEIGHTS} and {INDEX}, which names other files: it is not clear "
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
        "AutoModel.from_pretrained(folder).save_pretrained(new)"
    )
