"""Pictures of one's own with captions: a folder of PNG and JPEG files, read by Pillow.

Captions stand in metadata.jsonl (as `datasets` has it for an imagefolder) or captions.jsonl, a line
{"file_name": "cat.png", "text": "a cat"} for each picture, or in a text file beside each: cat.txt.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.patterns import some
from lora_jax.ranges import OneOf, Whole, check
from lora_jax.reading import parse_json, read_bytes, read_text

SUFFIXES = (".png", ".jpg", ".jpeg")
TABLES = ("metadata.jsonl", "captions.jsonl")
_MODES = {1: "L", 3: "RGB"}
_MOST_BYTES = 2**28  # of a file
_MOST_PIXELS = 2**27  # of a picture, which is held unpacked for a moment


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """Pictures with captions.

    Attributes:
      pictures: from -1 (black) to 1 (white); channels last.
      captions: of each.
      names: of their files, relative to the folder.
    """

    pictures: Float[np.ndarray, "n size size channels"]
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def read_folder(folder: Path, size: int, channels: int = 3, caption: str = "") -> PictureSet:
    """The pictures of a folder, in the order of their names, with captions.

    Args:
      folder: with PNG and JPEG files, and captions.
      size: height and width in pixels: the shorter side is scaled to it, and the middle is taken. What is
        transparent becomes white.
      channels: 3 for colours, 1 for grey.
      caption: of all pictures, where the folder has no captions; "" for none.

    Raises:
      MissingFileError: no folder, no pictures, or a caption of a picture that is not there.
      FileError: a broken file, or a line that is none.
      InputError: pictures without a caption, or captions in two places.
    """
    check("size", size, Whole(most=2**14))
    check("channels", channels, OneOf(tuple(_MODES)))
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder; give the one that holds the pictures")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not names:
        raise MissingFileError(
            f"{folder} holds no pictures; the names of pictures end in {', '.join(SUFFIXES)}"
        )
    captions = _captions(folder, names, caption)
    pictures = [read_picture(folder / name, size, channels) for name in names]
    return PictureSet(np.stack(pictures), captions, names)


def read_picture(path: Path, size: int, channels: int) -> Float[np.ndarray, "size size channels"]:
    """One picture, see `read_folder`."""
    data = read_bytes(path, _MOST_BYTES)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                found = f"{opened.width:,} x {opened.height:,} pixels"
                raise FileError(path, "", found, f"at most {_MOST_PIXELS:,} pixels")
            whole = _opaque(ImageOps.exif_transpose(opened)).convert(_MODES[channels])
            made = ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)
    except FileError:
        raise
    except Exception as error:  # what Pillow raises for broken files has many kinds
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        found = f"no picture that can be read{reason}"
        raise FileError(
            path, "", found, "a PNG or JPEG file", "Get or make the file again"
        ) from error
    values = np.asarray(made, np.float32).reshape(size, size, channels)
    return values / np.float32(127.5) - 1


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture on white paper where it is transparent, in 8 bits a channel."""
    if picture.mode.startswith("I"):  # 16 bits, of which Pillow would show all above 255 as white
        return Image.fromarray(np.round(np.asarray(picture, np.float32) / 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture.convert("RGBA"))


def _captions(folder: Path, names: Sequence[str], default: str) -> list[str]:
    tables = [folder / name for name in TABLES if (folder / name).exists()]
    beside = {
        name: path for name in names if (path := (folder / name).with_suffix(".txt")).is_file()
    }
    places = [
        *map(str, tables),
        *([f"text files such as {next(iter(beside.values()))}"] if beside else []),
    ]
    if len(places) > 1:
        raise InputError(
            f"captions stand in several places, {' and '.join(places)}: which of them is meant is not known. "
            "Move all but one away"
        )
    found = _table(tables[0], names) if tables else {
        name: read_text(path).strip() for name, path in beside.items()
    }  # fmt: skip
    if not found and default:
        found = dict.fromkeys(names, default)
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{folder}: {len(missing)} of {len(names)} pictures have no caption: {some(missing)}. Write "
            f"{TABLES[0]} with a line {json.dumps({'file_name': missing[0], 'text': 'a caption'})} for each, "
            f"a text file {Path(missing[0]).with_suffix('.txt')} beside each, or give one caption for all"
        )
    return [found[name] for name in names]


def _table(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The captions of a table of JSON lines, by the names of files."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        value = parse_json(line, f"{path}, {where}")
        texts = [
            value.get(key) if isinstance(value, dict) else None for key in ("file_name", "text")
        ]
        if not all(isinstance(text, str) for text in texts):
            expected = 'an object such as {"file_name": "cat.png", "text": "a cat"}'
            raise FileError(path, where, repr(value)[:80], expected)
        name, text = map(str, texts)
        if name not in names:
            raise MissingFileError(
                f"{path}, {where}: there is no picture {name!r} in {path.parent}"
            )
        if name in found:
            raise FileError(path, where, f"{name!r} a second time", "one line for each picture")
        found[name] = text.strip()
    return found
