"""Grids of pictures to look at, as PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lora_jax.files import write_bytes

_MARGIN = 1  # pixels between pictures


def to_bytes(
    pictures: Float[np.ndarray, "n height width channels"],
) -> UInt8[np.ndarray, "n height width channels"]:
    """Pictures from -1 to 1 as bytes; what lies outside is cut."""
    return np.clip(np.round((pictures + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(
    pictures: Float[np.ndarray, "n height width channels"], columns: int, scale: int = 1
) -> UInt8[np.ndarray, "rows pixels channels"]:
    """Pictures side by side, in rows of `columns`, with white lines between them.

    Args:
      pictures: from -1 to 1.
      columns: pictures of a row; the last row may have fewer.
      scale: times that every pixel is enlarged.
    """
    small = to_bytes(pictures)
    n, height, width, channels = small.shape
    rows = -(-n // columns)
    high, wide = height * scale + _MARGIN, width * scale + _MARGIN
    sheet = np.full((rows * high + _MARGIN, columns * wide + _MARGIN, channels), 255, np.uint8)
    for number, picture in enumerate(small):
        row, column = divmod(number, columns)
        top, left = row * high + _MARGIN, column * wide + _MARGIN
        large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + height * scale, left : left + width * scale] = large
    return sheet


def write_png(path: Path, values: UInt8[np.ndarray, "height width channels"]) -> None:
    """Writes one picture, whole or not at all."""
    made = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    stream = io.BytesIO()
    made.save(stream, format="PNG")
    write_bytes(path, stream.getvalue())
