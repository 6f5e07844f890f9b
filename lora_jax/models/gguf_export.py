"""A decoder as a GGUF file: metadata and tokenizer are those of the GGUF file that its base was read from.

Norms and biases are F32, as llama.cpp has them. A tensor whose values and type are those of the base is
copied byte by byte; others are packed anew, by ggml's reference rounding, and what that changed is measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from lora_jax import partition
from lora_jax.errors import InputError, brief
from lora_jax.files import write_pieces
from lora_jax.gguf import blocks
from lora_jax.gguf.container import SUFFIX, Container, Entry
from lora_jax.gguf.header import Value
from lora_jax.gguf.kinds import KINDS, NUMBERS, Kind
from lora_jax.gguf.layouts import LAYOUTS
from lora_jax.gguf.packing import PACK
from lora_jax.gguf.writing import Tensor, copied, encoded
from lora_jax.models.architectures import ARCHITECTURES, read_config
from lora_jax.models.decoder import Decoder
from lora_jax.models.gguf_files import GgufFiles
from lora_jax.models.plain import check_plain
from lora_jax.models.settings import computing
from lora_jax.models.tensors import published_tensors
from lora_jax.quantisation.ggml import Ggml
from lora_jax.quantisation.measured import Measured, measured

# Of `general.file_type` (llama.cpp's llama_ftype), by the type of most matrices.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32,
}  # fmt: skip
STORED = "stored"
TYPES = (*(name.lower() for name in _FILE_TYPES), STORED)
_FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}
_TABLES = ("token_embd.weight", "output.weight")
_FILE_TYPE, _VERSION, _LAYOUT = "general.file_type", "general.quantization_version", 2
_LAYER = re.compile(r"blk\.\d+\.")
_PACK = "Write --type=f16 (or f32) and pack that file with llama.cpp's llama-quantize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written(Measured):
    """What became of one tensor.

    Attributes:
      name: llama.cpp's.
      kind: its type.
      size: number of its values.
      same: whether it is the base's, byte by byte.
    """

    name: str
    kind: str
    size: int
    same: bool

    @property
    def group(self) -> str:
        """Its name without the layer's number."""
        return _LAYER.sub("", self.name)


def check(base: Path, type: str) -> None:
    """Checks by the head of the base whether `save` can write that type, before a model is loaded.

    Raises:
      InputError, FileError, OSError: an unknown type, or one that is not packed here; the base is no
        GGUF file, or blocks do not divide its rows.
    """
    if type not in TYPES:
        known = f"the type of a GGUF file is one of {', '.join(TYPES)}; got {brief(type)}"
        raise InputError(f"{known}. {_PACK}" if "k" in str(type).lower() else known)
    if base.suffix != SUFFIX:
        raise InputError(
            f"{base} is no GGUF file, so there is no metadata and no vocabulary for the new one: write a "
            "folder (python -m experiments.convert to_hugging_face) and convert it with llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    file = Container(base)
    for name, entry in file.tensors.items():
        kind = _kind(name, entry, type)
        if entry.shape[-1] % kind.values:
            raise InputError(
                f"{base}: {name} has rows of {entry.shape[-1]} values, and {kind.name} packs blocks of "
                f"{kind.values}; write another type, such as f16"
            )


def _kind(name: str, entry: Entry, type: str) -> Kind:
    """The type in which a tensor of the base is written."""
    if type == STORED:
        return entry.kind
    if len(entry.shape) == 1:
        return KINDS[NUMBERS["F32"]]
    if name in _TABLES and type.upper() not in _FLOATS:
        return entry.kind
    return KINDS[NUMBERS[type.upper()]]


def save(
    path: Path,
    model: Decoder,
    base: Path,
    type: str = STORED,
    values: Mapping[str, Value] | None = None,
    *,
    tuned: partition.Params | None = None,
) -> list[Written]:
    """Writes a model of floating-point numbers as a GGUF file, whole or not at all.

    Args:
      path: of the file.
      model: merged; float32 loses nothing before it is packed.
      base: the GGUF file of its base.
      type: of its matrices, see `TYPES`; `stored` takes those of the base, tensor by tensor. Tables keep
        the base's type where `type` is a packed one.
      values: of the metadata, that replace those of the base.
      tuned: the parameters by path that the model was tuned over, in floating-point numbers, where they
        are not the file's: packed anew, for example. Changes are measured from them.

    Returns:
      What became of each tensor.

    Raises:
      InputError, FileError, OSError: see `check`; the model is not one of that file, is not merged, or
        has values that the type cannot hold or that are not packed here.
    """
    check(base, type)
    check_plain(model)
    files = GgufFiles(base)
    architecture = ARCHITECTURES[model.config.architecture]
    made = published_tensors(partition.parameters(model), architecture.layout)
    _check_same(files, model, set(made))
    starts = {} if tuned is None else published_tensors(tuned, architecture.layout)
    report: list[Written] = []
    tensors, names = {}, files.published()
    for name, entry in files.container.tensors.items():
        published = names.get(name)
        if published is None:  # factors of rotary periods
            tensors[name] = copied(files.container, name)
            continue
        one = _One(
            files,
            name,
            published,
            _kind(name, entry, type),
            made[published],
            starts.get(published),
            report,
        )
        tensors[name] = Tensor(kind=one.kind, shape=entry.shape, data=one.pieces)
    metadata = _metadata(files.container, type, [tensor.kind for tensor in tensors.values()])
    metadata |= values or {}
    write_pieces(path, encoded(metadata, tensors, files.container.value_types))
    return report


def _check_same(files: GgufFiles, model: Decoder, names: set[str]) -> None:
    """Raises InputError for a model of other settings or tensors than the file's."""
    here, there = computing(model.config), computing(read_config(files.folder))
    if odd := [key for key, value in there.items() if key != "base_format" and here[key] != value]:
        raise InputError(
            f"the model is not one of {files.folder}: its {odd[0]} is {brief(here[odd[0]])}, and "
            f"{brief(there[odd[0]])} there"
        )
    if odd := sorted(names ^ set(files.shapes)):
        raise InputError(
            f"the model is not one of {files.folder}: {odd[0]} is in one of them alone. A GGUF file is "
            "written with the tensors of its base"
        )


def _metadata(file: Container, type: str, kinds: Iterable[Kind]) -> dict[str, Value]:
    """The base's metadata, with what it says of types made right."""
    # How the base was packed (by which importance matrix) is not how this file is.
    metadata = {k: v for k, v in file.metadata.items() if not k.startswith("quantize.")}
    if type != STORED:
        metadata[_FILE_TYPE] = _FILE_TYPES[type.upper()]
    if any(kind.name in LAYOUTS for kind in kinds):
        metadata[_VERSION] = _LAYOUT
    return metadata


@dataclasses.dataclass(frozen=True)
class _One:
    """A tensor that is packed when it is written."""

    files: GgufFiles
    name: str
    published: str
    kind: Kind
    make: Callable[[], np.ndarray]
    start: Callable[[], np.ndarray] | None  # the values before tuning; None: those of the file
    report: list[Written]

    def pieces(self) -> Iterator[np.ndarray]:
        """Its bytes; what became of it is added to the report."""
        entry = self.files.container.tensors[self.name]
        values = self.make().astype(np.float32)
        if values.shape != entry.shape:
            raise InputError(
                f"{self.files.folder}: {self.name} is of shape {entry.shape}, the model's is {values.shape}"
            )
        before = self.files.read([self.published], np.float32)[self.published]
        same = self.kind == entry.kind and np.array_equal(before, values)
        after = was = stored = values  # of bytes that are the base's
        if same:
            yield from copied(self.files.container, self.name).data()
        else:
            stored = self.files.as_stored(self.published, values)
            start = self.start().astype(np.float32) if self.start else before
            was = self.files.as_stored(self.published, start)
            raw = self._packed(stored)
            yield raw
            after = blocks.dequantise(self.kind.name, raw).reshape(stored.shape)
        self.report.append(
            Written(
                name=self.name, kind=self.kind.name, size=values.size, same=same,
                **measured(stored, was, after),
            )
        )  # fmt: skip

    def _packed(self, values: Float32[np.ndarray, ...]) -> UInt8[np.ndarray, "blocks size"]:
        if self.kind.name in _FLOATS:
            with np.errstate(over="ignore"):
                raw = values.reshape(-1, 1).astype(_FLOATS[self.kind.name]).view(np.uint8)
        elif self.kind.name in PACK:
            form = Ggml(self.kind.name)
            with np.errstate(over="ignore", invalid="ignore"):
                arrays = form.pack(values.reshape(-1, values.shape[-1]))
            raw = form.to_blocks(arrays).reshape(-1, self.kind.size)
        else:
            raise self.files.error(
                self.published, f"type {self.kind.name}, and values that are not the base's",
                "a type that is packed here", _PACK,
            )  # fmt: skip
        if not np.isfinite(blocks.dequantise(self.kind.name, raw)).all():
            raise self.files.error(
                self.published, "values in the model that are not finite or too large",
                f"values that {self.kind.name} holds", "Write --type=f32 or bf16",
            )  # fmt: skip
        return raw
