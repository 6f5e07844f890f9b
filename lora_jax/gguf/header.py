"""What stands at the head of a GGUF file, read one value at a time within bounds.

Nothing is taken on trust: no count or length is used before the file is known to be long enough for it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lora_jax.errors import FileError
from lora_jax.reading import AGAIN

MOST_STRINGS = (
    2**23
)  # of all arrays together; Gemma 3 has 262 thousand tokens and 515 thousand merges
MOST_TEXT = 2**26  # bytes of a string; a chat template has some thousands
MOST_NAME = 2**16  # bytes of a key or of a tensor's name

# The types of values in the metadata, by their number: NumPy's name of those with a fixed size.
FIXED = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9

Value = bool | int | float | str | list[str] | np.ndarray


class Head:
    """The bytes of a file, from its first on.

    Attributes:
      path: of the file.
      size: of the file, in bytes.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.size, self._file, self._at = path, size, file, 0
        self._strings = 0

    @property
    def at(self) -> int:
        """Bytes that were read."""
        return self._at

    def error(self, where: str, found: str, expected: str, remedy: str = AGAIN) -> FileError:
        """The error for a place; give it to `raise`."""
        return FileError(self.path, where, found, expected, remedy)

    def take(self, count: int, where: str) -> bytes:
        """The next bytes.

        Raises:
          FileError: the file ends before.
        """
        self.check_room(count, where)
        data = self._file.read(count)
        if len(data) != count:  # it was cut while it was read
            raise self.error(where, "the end of the file", f"{count:,} bytes more")
        self._at += count
        return data

    def check_room(self, count: int, where: str) -> None:
        """Raises FileError if the file has fewer bytes left."""
        if count > self.size - self._at:
            raise self.error(
                where, f"{self.size - self._at:,} bytes up to the end of the file",
                f"{count:,} bytes, as the file says: it is truncated or broken",
            )  # fmt: skip

    def number(self, form: str, where: str) -> int:
        """An integer: `form` is "<I" for 32 bits, "<Q" for 64."""
        value: int = struct.unpack(form, self.take(struct.calcsize(form), where))[0]
        return value

    def text(self, where: str, most: int = MOST_TEXT) -> str:
        """A string: its length and UTF-8."""
        length = self.number("<Q", where)
        if length > most:
            raise self.error(where, f"a string of {length:,} bytes", f"at most {most:,}")
        try:
            return self.take(length, where).decode()
        except UnicodeDecodeError as error:
            raise self.error(where, "bytes that are not UTF-8", "UTF-8 text") from error

    def value(self, where: str) -> tuple[int, Value]:
        """A value of the metadata, with its type before it.

        Returns:
          The number of the type; a number, a string, a list of strings, or an array of numbers.

        Raises:
          FileError: an unknown type, an array of arrays, or more than the file has room for.
        """
        kind = self.number("<I", where)
        if kind == ARRAY:
            return kind, self._array(where)
        if kind == STRING:
            return kind, self.text(where)
        return kind, self._numbers(kind, 1, where)[0].item()

    def _array(self, where: str) -> list[str] | np.ndarray:
        kind, count = self.number("<I", where), self.number("<Q", where)
        if kind != STRING:
            return self._numbers(kind, count, where)
        self.check_room(8 * count, where)
        self._strings += count
        if self._strings > MOST_STRINGS:
            raise self.error(where, f"{count:,} strings", f"at most {MOST_STRINGS:,} in all arrays")
        return self._texts(count, where)

    def _texts(self, count: int, where: str) -> list[str]:
        """Strings one behind the other: as `text` has one, in a loop of its own for the sake of time."""
        read, left, texts = self._file.read, self.size - self._at, []
        for number in range(count):
            head = read(8)
            length = int.from_bytes(head, "little")
            left -= 8 + length
            if left < 0 or length > MOST_TEXT or len(head) < 8:
                raise self.error(
                    f"{where}[{number}]", f"a string of {length:,} bytes",
                    f"at most {MOST_TEXT:,}, inside the file: it is truncated or broken",
                )  # fmt: skip
            data = read(length)
            try:
                texts.append(data.decode())
            except UnicodeDecodeError as error:
                place = f"{where}[{number}]"
                raise self.error(place, "bytes that are not UTF-8", "UTF-8 text") from error
            if len(data) != length:  # the file was cut while it was read
                raise self.error(f"{where}[{number}]", "the end of the file", f"{length:,} bytes")
        self._at = self.size - left
        return texts

    def _numbers(self, kind: int, count: int, where: str) -> np.ndarray:
        if kind not in FIXED:
            what = "an array of arrays" if kind == ARRAY else f"type {kind}"
            raise self.error(where, what, "a number, a string, or an array of them")
        dtype: np.dtype[Any] = np.dtype(FIXED[kind])
        self.check_room(dtype.itemsize * count, where)
        data = self.take(dtype.itemsize * count, where)
        if kind == BOOL and data.strip(b"\0\1"):
            raise self.error(where, "a byte other than 0 and 1", "true or false")
        return np.frombuffer(data, dtype)
