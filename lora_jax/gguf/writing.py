"""GGUF files to be written: version 3, little-endian, as llama.cpp's own readers take them.

What `Container` reads can be written again: a file of version 3 whose tensors lie in their order, as those
of llama.cpp do, comes out with the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from lora_jax.errors import InputError, brief
from lora_jax.gguf.container import (
    ALIGNMENT,
    DIMENSIONS,
    MAGIC,
    USUAL_ALIGNMENT,
    VERSIONS,
    Container,
    is_alignment,
)
from lora_jax.gguf.header import ARRAY, BOOL, FIXED, STRING, Value
from lora_jax.gguf.kinds import NUMBERS, Kind

_LONGEST_NAME = 63  # bytes of a tensor's name; ggml keeps them in arrays of 64
_LONGEST_KEY = 2**16 - 1
_UINT32, _INT32, _FLOAT32, _UINT64, _INT64 = 4, 5, 6, 10, 11
_AT_ONCE = 2**16  # blocks that are copied at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor to be written.

    Attributes:
      kind: its type.
      shape: rows first, as NumPy has it; the blocks lie along the last axis.
      data: makes its bytes, in pieces, when they are written.
    """

    kind: Kind
    shape: tuple[int, ...]
    data: Callable[[], Iterable[np.ndarray]]

    @property
    def size(self) -> int:
        """Number of its bytes."""
        return math.prod(self.shape) // self.kind.values * self.kind.size


def copied(file: Container, name: str) -> Tensor:
    """A tensor of another file, as it is there."""
    entry = file.tensors[name]
    return Tensor(kind=entry.kind, shape=entry.shape, data=lambda: file.blocks(name, _AT_ONCE))


def encoded(
    metadata: Mapping[str, Value],
    tensors: Mapping[str, Tensor],
    types: Mapping[str, int] | None = None,
) -> Iterator[bytes | memoryview]:
    """A file in pieces, the bytes of one tensor after the other; see `files.write_pieces`.

    Args:
      metadata: values by key; `general.alignment` is heeded.
      tensors: by name, in their order.
      types: numbers of the types of values, see `Container.value_types`. A number without one becomes
        UINT32, INT32 or a longer one where it is needed, or FLOAT32: llama.cpp asks for these.

    Raises:
      ValueError: a key, value, name or shape that no file can have; a tensor has other bytes than its
        shape says.
    """
    alignment = metadata.get(ALIGNMENT, USUAL_ALIGNMENT)
    if not is_alignment(alignment):
        raise InputError(f"{ALIGNMENT} must be a power of two, got {brief(alignment, 40)}")
    assert isinstance(alignment, int)
    head = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key, key, _LONGEST_KEY), _value(key, value, (types or {}).get(key))]
    start = 0
    for name, tensor in tensors.items():
        head.append(_entry(name, tensor, start))
        start += tensor.size + -tensor.size % alignment
    whole = b"".join(head)
    yield whole + bytes(-len(whole) % alignment)
    for name, tensor in tensors.items():
        written = 0
        for piece in tensor.data():
            written += piece.nbytes
            yield memoryview(np.ascontiguousarray(piece)).cast("B")
        if written != tensor.size:
            raise InputError(
                f"tensor {name} has {written:,} bytes; {tensor.kind.name} {tensor.shape} takes "
                f"{tensor.size:,}"
            )
        yield bytes(-tensor.size % alignment)


def _entry(name: str, tensor: Tensor, start: int) -> bytes:
    """What the head says of a tensor."""
    shape, kind = tensor.shape, tensor.kind
    if not 1 <= len(shape) <= DIMENSIONS or min(shape) < 1 or shape[-1] % kind.values:
        raise InputError(
            f"tensor {name} of shape {shape} cannot be {kind.name}: it needs 1 to {DIMENSIONS} axes, the "
            f"last one a multiple of {kind.values}"
        )
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    place = struct.pack("<IQ", NUMBERS[kind.name], start)
    return _text(f"tensor {name}", name, _LONGEST_NAME) + sizes + place


def _text(where: str, text: str, most: int | None = None) -> bytes:
    """A string: its length and UTF-8."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where!a} has half of a surrogate pair, which is no text") from error
    if most is not None and len(data) > most:
        raise InputError(f"{brief(text)} has {len(data):,} bytes; llama.cpp takes {most:,} at most")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value, kind: int | None) -> bytes:
    """A value, with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(key, value)
    if isinstance(value, list):
        texts = b"".join(_text(f"{key}[{number}]", text) for number, text in enumerate(value))
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + texts
    if isinstance(value, np.ndarray):
        return _array(key, value)
    kind = _kind(value) if kind is None else kind
    with np.errstate(over="ignore"):
        try:
            number = np.array(value, FIXED[kind])
        except (KeyError, OverflowError):
            number = None
    if number is None or (number.dtype.kind != "f" and number != value):
        raise InputError(f"{key}: {brief(value)} is no value of GGUF's type {kind}")
    return struct.pack("<I", kind) + number.tobytes()


def _array(key: str, values: np.ndarray) -> bytes:
    kinds = {np.dtype(name): kind for kind, name in FIXED.items()}
    little = values.dtype.newbyteorder("<")
    if values.ndim != 1 or little not in kinds:
        raise InputError(
            f"{key}: an array of GGUF has one axis and integers, float32, float64 or truth values; got "
            f"{values.dtype} {values.shape}"
        )
    head = struct.pack("<IIQ", ARRAY, kinds[little], len(values))
    return head + values.astype(little, copy=False).tobytes()


def _kind(value: bool | int | float) -> int:
    """The number of the type that llama.cpp reads such a value in."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return _FLOAT32
    if value >= 0:
        return _UINT32 if value < 2**32 else _UINT64
    return _INT32 if value >= -(2**31) else _INT64
