"""A GGUF file: its metadata, and the names, types, shapes and bytes of its tensors.

The format: docs/gguf.md of ggml. Read are versions 2 and 3 in little-endian byte order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lora_jax.errors import FileError, brief
from lora_jax.gguf.header import MOST_NAME, Head, Value
from lora_jax.gguf.kinds import KINDS, Kind
from lora_jax.reading import AGAIN, check_file, named

SUFFIX = ".gguf"
_OLD = (b"lmgg", b"tjgg", b"fmgg", b"algg", b"GGML", b"ggml", b"ggjt", b"ggmf", b"ggla")
_CONVERT = "Convert the model again with llama.cpp's convert_hf_to_gguf.py"
_MOST_VALUES = 2**40  # of a tensor
ALIGNMENT, USUAL_ALIGNMENT = "general.alignment", 32  # its key; bytes without it
MAGIC, VERSIONS = b"GGUF", (2, 3)
DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
_MOST_ALIGNMENT = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies.

    Attributes:
      kind: its type.
      shape: rows first, as NumPy has it: (out, in) of a matrix; the file has them the other way.
      start: of its bytes in the file.
    """

    kind: Kind
    shape: tuple[int, ...]
    start: int

    @property
    def blocks(self) -> int:
        """Number of its blocks."""
        return math.prod(self.shape) // self.kind.values

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return self.blocks * self.kind.size


class Container:
    """A GGUF file, of which the head was read.

    Attributes:
      path: of the file.
      metadata: values by key, in the order of the file.
      value_types: numbers of their types in the file, of which some share one here.
      tensors: by name, in the order of the file.
    """

    def __init__(self, path: Path):
        """Reads the head.

        Raises:
          MissingFileError, FileError, OSError: no such file, truncated, broken, of another kind or of
            another byte order.
        """
        check_file(path)
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb", buffering=2**20) as file:
                head = Head(path, file, size)
                tensors, keys = _counts(head)
                typed = _metadata(head, keys)
                self.metadata = {key: value for key, (_, value) in typed.items()}
                self.value_types = {key: kind for key, (kind, _) in typed.items()}
                self.tensors = _tensors(head, tensors, self.metadata)
        except OSError as error:
            raise named(error, path) from error

    def error(self, where: str, found: str, expected: str, remedy: str = AGAIN) -> FileError:
        """The error for a key or a tensor of the file; give it to `raise`."""
        return FileError(self.path, where, found, expected, remedy)

    def blocks(self, name: str, most: int) -> Iterator[np.ndarray]:
        """The bytes of a tensor, some blocks at a time.

        Args:
          name: of the tensor.
          most: blocks that are read at once.

        Yields:
          uint8 (blocks, bytes of a block).

        Raises:
          FileError, OSError: the file was cut since its head was read, or cannot be read.
        """
        entry = self.tensors[name]
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                for first in range(0, entry.blocks, most):
                    count = min(most, entry.blocks - first)
                    data = np.fromfile(file, np.uint8, count * entry.kind.size)
                    if data.size != count * entry.kind.size:
                        raise self.error(f"tensor {name}", "the end of the file", "its values")
                    yield data.reshape(count, entry.kind.size)
        except OSError as error:
            raise named(error, self.path) from error


def _counts(head: Head) -> tuple[int, int]:
    """The numbers of tensors and of keys, after the magic and the version."""
    magic = head.take(min(4, head.size), "the first bytes")
    if magic in _OLD:
        raise head.error("the first bytes", f"an old GGML file ({magic!r})", "GGUF", _CONVERT)
    if magic != MAGIC:
        raise head.error("the first bytes", repr(magic), repr(MAGIC))
    version = head.number("<I", "the version")
    if version and version & 0xFFFF == 0:
        raise head.error(
            "the version", "big-endian byte order", "little-endian",
            f"{_CONVERT}, without --bigendian",
        )  # fmt: skip
    if version not in VERSIONS:
        raise head.error("the version", f"{version}", "2 or 3", _CONVERT)
    tensors = head.number("<Q", "the number of tensors")
    keys = head.number("<Q", "the number of keys")
    head.check_room(13 * keys, f"{keys:,} keys")
    head.check_room(13 * keys + 28 * tensors, f"{tensors:,} tensors")
    return tensors, keys


def _metadata(head: Head, count: int) -> dict[str, tuple[int, Value]]:
    values: dict[str, tuple[int, Value]] = {}
    for number in range(count):
        key = head.text(f"the key of value {number}", MOST_NAME)
        if key in values:
            raise head.error(key, "this key twice", "each key once")
        values[key] = head.value(key)
    return values


def _tensors(head: Head, count: int, metadata: dict[str, Value]) -> dict[str, Entry]:
    """The entries of the tensors, whose bytes lie inside the file and do not overlap."""
    alignment = _alignment(head, metadata.get(ALIGNMENT, USUAL_ALIGNMENT))
    entries: dict[str, Entry] = {}
    for number in range(count):
        name = head.text(f"the name of tensor {number}", MOST_NAME)
        if name in entries:
            raise head.error(f"tensor {name}", "this name twice", "each name once")
        entries[name] = _entry(head, f"tensor {name}", alignment)
    data = -(-head.at // alignment) * alignment
    end, before = data, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        start = data + entry.start
        if start + entry.size > head.size:
            raise head.error(
                f"tensor {name}", f"bytes {start:,} to {start + entry.size:,}",
                f"bytes inside the file, which has {head.size:,}: it is truncated or broken",
            )  # fmt: skip
        if start < end:
            raise head.error(f"tensor {name}", f"bytes that overlap those of {before}", "its own")
        end, before = start + entry.size, name
    return {
        name: dataclasses.replace(entry, start=data + entry.start)
        for name, entry in entries.items()
    }


def _alignment(head: Head, found: Value) -> int:
    """Bytes of which every tensor starts at a multiple."""
    if not is_alignment(found):
        raise head.error(ALIGNMENT, brief(found, 40), "a power of two")
    assert isinstance(found, int)
    return found


def is_alignment(value: Value) -> bool:
    """Whether tensors can start at multiples of so many bytes: a power of two, not too large."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return 1 <= value <= _MOST_ALIGNMENT and not value & (value - 1)


def _entry(head: Head, where: str, alignment: int) -> Entry:
    """A tensor's entry; its start is as the file has it, from the first byte of all tensors on."""
    dimensions = head.number("<I", where)
    if not 1 <= dimensions <= DIMENSIONS:
        raise head.error(where, f"{dimensions} axes", f"1 to {DIMENSIONS}")
    sizes = [head.number("<Q", where) for _ in range(dimensions)]
    if not 0 < math.prod(sizes) <= _MOST_VALUES:
        raise head.error(where, f"the shape {sizes}"[:80], f"1 to 2**40 values, got {sizes}"[:80])
    number, start = head.number("<I", where), head.number("<Q", where)
    if number not in KINDS:
        raise head.error(
            where, f"type {number}", "a type of ggml",
            "The file is newer than this version, or broken: take the model in Q8_0 or F16",
        )  # fmt: skip
    kind = KINDS[number]
    if sizes[0] % kind.values:
        raise head.error(
            where, f"rows of {sizes[0]}", f"a multiple of {kind.values} for {kind.name}"
        )
    if start % alignment:
        raise head.error(where, f"offset {start:,}", f"a multiple of the alignment, {alignment}")
    return Entry(kind=kind, shape=tuple(reversed(sizes)), start=start)
