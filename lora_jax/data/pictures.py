"""Pictures of one's own with captions: a folder of PNG, JPEG and WebP files, read by Pillow.

Captions stand in metadata.jsonl (as `datasets` has it for an imagefolder) or captions.jsonl, a line
{"file_name": "cat.png", "text": "a cat"} for each picture, or in a text file beside each: cat.txt, or
cat.caption, as kohya's scripts have it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.patterns import some
from lora_jax.ranges import OneOf, Whole, check
from lora_jax.reading import parse_json, read_bytes, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TABLES = ("metadata.jsonl", "captions.jsonl")
TEXTS = (".txt", ".caption")
_OTHERS = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jxl", ".tif", ".tiff")
_AS_UTF_8 = "Save it as UTF-8"
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
      folder: with pictures, and captions. What is hidden is not read: names that begin with `.` or `__`, as
        those that macOS and Jupyter leave behind.
      size: height and width in pixels: the shorter side is scaled to it, and the middle is taken. What is
        transparent becomes white.
      channels: 3 for colours, 1 for grey.
      caption: of all pictures, whatever captions the folder has; "" for those of the folder.

    Raises:
      MissingFileError: no folder, no pictures, or a caption of a picture that is not there.
      FileError: a broken file, or a line that is none.
      InputError: pictures without a caption, captions in two places, or pictures of other kinds.
    """
    check("size", size, Whole(most=2**14))
    check("channels", channels, OneOf(tuple(_MODES)))
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder; give the one that holds the pictures")
    names = _names(folder)
    captions = [caption] * len(names) if caption else _captions(folder, names)
    pictures = [read_picture(folder / name, size, channels) for name in names]
    return PictureSet(np.stack(pictures), captions, names)


def _names(folder: Path) -> list[str]:
    """The pictures of a folder, in order; those of kinds that are not read would be missed in silence."""
    within = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    seen = [path for path in within if not any(p.startswith((".", "__")) for p in path.parts)]
    kinds = ", ".join(SUFFIXES)
    if others := sorted(path.as_posix() for path in seen if path.suffix.lower() in _OTHERS):
        raise InputError(
            f"{folder}: {len(others)} pictures are of kinds that are not read: {some(others)}. Convert them "
            f"({kinds} are read), or move them away"
        )
    names = sorted(path.as_posix() for path in seen if path.suffix.lower() in SUFFIXES)
    if not names:
        raise MissingFileError(f"{folder} holds no pictures; the names of pictures end in {kinds}")
    return names


def read_picture(path: Path, size: int, channels: int) -> Float[np.ndarray, "size size channels"]:
    """One picture, see `read_folder`."""
    data = read_bytes(path, _MOST_BYTES)
    try:
        with _opened(data) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            whole = _opaque(ImageOps.exif_transpose(opened)).convert(_MODES[channels])
            made = ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)
    except Image.DecompressionBombError as error:
        most = f"at most {_MOST_PIXELS:,} pixels"
        raise FileError(path, "", "a larger picture", most, "Make it smaller") from error
    except Exception as error:  # what Pillow raises for broken files has many kinds
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        found = f"no picture that can be read{reason}"
        raise FileError(
            path, "", found, "a PNG, JPEG or WebP file", "Get or make the file again"
        ) from error
    values = np.asarray(made, np.float32).reshape(size, size, channels)
    return values / np.float32(127.5) - 1


def _opened(data: bytes) -> Image.Image:
    """A picture whose size is known; Pillow warns of sizes that phones have, and refuses the double."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture on white paper where it is transparent, in 8 bits a channel."""
    if picture.mode.startswith("I"):  # 16 bits, of which Pillow would show all above 255 as white
        return Image.fromarray(np.round(np.asarray(picture, np.float32) / 257).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture.convert("RGBA"))


def _captions(folder: Path, names: Sequence[str]) -> list[str]:
    tables = [folder / name for name in TABLES if (folder / name).exists()]
    beside = [
        {name: path for name in names if (path := (folder / name).with_suffix(suffix)).is_file()}
        for suffix in TEXTS
    ]
    texts = [paths for paths in beside if paths]
    such = (next(iter(paths.values())) for paths in texts)
    places = [*map(str, tables), *(f"text files such as {path}" for path in such)]
    if len(places) > 1:
        raise InputError(
            f"captions stand in several places, {' and '.join(places)}: which of them is meant is not known. "
            "Move all but one away"
        )
    found = _table(tables[0], names) if tables else dict[str, str]()
    for name, path in (texts[0] if texts else {}).items():
        found[name] = read_text(path, remedy=_AS_UTF_8).strip()
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{folder}: {len(missing)} of {len(names)} pictures have no caption: {some(missing)}. Write "
            f"{TABLES[0]} with a line {json.dumps({'file_name': missing[0], 'text': 'a caption'})} for each, "
            f"a text file {Path(missing[0]).with_suffix('.txt')} beside each, or give one caption for all "
            "(config.data.caption)"
        )
    return [found[name] for name in names]


def _table(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The captions of a table of JSON lines, by the names of files."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path, remedy=_AS_UTF_8).splitlines(), 1):
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
        name, text = PurePosixPath(str(texts[0])).as_posix(), str(texts[1])
        if name not in names:
            raise MissingFileError(
                f"{path}, {where}: there is no picture {name!r} in {path.parent}"
            )
        if name in found:
            raise FileError(path, where, f"{name!r} a second time", "one line for each picture")
        found[name] = text.strip()
    return found
