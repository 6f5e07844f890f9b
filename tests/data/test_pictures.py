"""Folders of pictures with captions."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from lora_jax.data import pictures
from lora_jax.errors import FileError, InputError, MissingFileError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name in ("b.png", "a.png", "more/c.JPG"):
        values = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / name)
    return tmp_path


def table(folder, lines, name="metadata.jsonl"):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts) + "\n")


CAPTIONS = [
    {"file_name": "b.png", "text": " a bee "},
    {"file_name": "a.png", "text": "an ant", "license": "none"},
    {"file_name": "more/c.JPG", "text": ""},
]


@pytest.mark.parametrize("name", pictures.TABLES)
def test_a_table_names_the_captions(folder, name):
    table(folder, CAPTIONS, name)
    found = pictures.read_folder(folder, 6)
    assert found.names == ["a.png", "b.png", "more/c.JPG"]
    assert found.captions == ["an ant", "a bee", ""]
    # The middle of a picture of the right height is taken as it is.
    expected = np.asarray(Image.open(folder / "a.png"), np.float32)[:, 2:8] / 127.5 - 1
    assert found.pictures.shape == (3, 6, 6, 3)
    np.testing.assert_allclose(found.pictures[0], expected, atol=1e-6)


def test_texts_beside_the_pictures_or_one_for_all(folder):
    grey = pictures.read_folder(folder, 4, channels=1, caption="a sks insect")
    assert grey.captions == ["a sks insect"] * 3 and grey.pictures.shape == (3, 4, 4, 1)
    for name in ("a.txt", "b.txt", "more/c.txt"):
        (folder / name).write_text(f"of {name}\n")
    assert pictures.read_folder(folder, 4).captions == ["of a.txt", "of b.txt", "of more/c.txt"]


def test_one_caption_for_all_comes_before_those_of_the_folder(folder):
    table(folder, CAPTIONS)
    assert pictures.read_folder(folder, 4, caption="a sks").captions == ["a sks"] * 3


def test_captions_and_names_as_other_programs_have_them(tmp_path):
    """kohya's suffix, WebP, a name that begins with a dot, and what macOS and Jupyter leave behind."""
    for name in ("b.webp", "a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / name, lossless=True)
    (tmp_path / "._a.png").write_bytes(b"\0\5\26\7")
    for name in ("a", "b"):
        (tmp_path / f"{name}.caption").write_text(f"of {name}\n")
    found = pictures.read_folder(tmp_path, 4)
    assert (found.names, found.captions) == (["a.png", "b.webp"], ["of a", "of b"])
    np.testing.assert_array_equal(found.pictures, np.tile([1.0, -1, -1], (2, 4, 4, 1)))
    for name in ("a", "b"):
        (tmp_path / f"{name}.caption").unlink()
    table(tmp_path, [{"file_name": f"./{n}", "text": n} for n in ("b.webp", "a.png")])
    assert pictures.read_folder(tmp_path, 4).captions == ["a.png", "b.webp"]
    (tmp_path / "c.HEIC").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"1 pictures are of kinds that are not read: c.HEIC.*webp"
    ):
        pictures.read_folder(tmp_path, 4)


def test_values_span_the_range(tmp_path):
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(tmp_path / "a.png")
    found = pictures.read_folder(tmp_path, 2, channels=1, caption="x").pictures
    np.testing.assert_array_equal(found[0, ..., 0], [[-1, 1], [1, -1]])


def test_pictures_of_other_kinds(tmp_path):
    """Transparent, of a palette, of 16 bits, and turned by the camera."""
    values = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    share = values[..., 3:] / 255
    expected = {"a.png": values[..., :3] * share + 255 * (1 - share)}
    palette = Image.new("P", (4, 4))
    palette.putpalette([200, 10, 30, 1, 2, 3])
    palette.putpixel((2, 1), 1)
    palette.save(tmp_path / "b.png", transparency=1)
    expected["b.png"] = np.tile([200.0, 10, 30], (4, 4, 1))
    expected["b.png"][1, 2] = 255
    deep = np.random.default_rng(1).integers(0, 2**16, (4, 4), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.png")
    expected["c.png"] = np.repeat(deep[..., None] / 257, 3, axis=-1)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned to the right
    Image.fromarray(values[..., 0]).save(tmp_path / "d.png", exif=turned)
    expected["d.png"] = np.repeat(np.rot90(values[..., :1].astype(float), -1), 3, axis=-1)
    found = pictures.read_folder(tmp_path, 4, caption="x")
    for name, picture in zip(found.names, found.pictures, strict=True):
        shown = (picture + 1) * 127.5
        np.testing.assert_allclose(shown, expected[name], atol=1.01, err_msg=name)  # Pillow rounds


def test_what_is_wrong_is_named(folder):
    with pytest.raises(
        InputError, match=r"3 of 3 pictures have no caption: a.png, b.png.*metadata.jsonl"
    ):
        pictures.read_folder(folder, 4)
    table(folder, CAPTIONS[:2])
    with pytest.raises(InputError, match="1 of 3 pictures have no caption: more/c.JPG"):
        pictures.read_folder(folder, 4)
    for line, error in (
        ({"file_name": "d.png", "text": "x"}, "line 3: there is no picture 'd.png'"),
        (CAPTIONS[0], "line 3.*second time"),
        ({"file_name": "more/c.JPG"}, "line 3.*file_name"),
        ("{", "line 3.*JSON"),
    ):
        table(folder, [*CAPTIONS[:2], line])
        with pytest.raises(InputError, match=error):
            pictures.read_folder(folder, 4)
    table(folder, CAPTIONS)
    (folder / "a.txt").write_text("x")
    with pytest.raises(InputError, match="several places"):
        pictures.read_folder(folder, 4)


def test_broken_and_missing_files(tmp_path):
    with pytest.raises(MissingFileError, match="no folder"):
        pictures.read_folder(tmp_path / "none", 4)
    with pytest.raises(MissingFileError, match="holds no pictures"):
        pictures.read_folder(tmp_path, 4)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(FileError, match="a.png.*no picture that can be read"):
        pictures.read_folder(tmp_path, 4, caption="x")
    exif = Image.Exif()
    exif[0x0112], exif[0x0100] = 6, 3
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="JPEG", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    text = data.replace(
        b"\x01\x00\x00\x04", b"\x01\x00\x00\x02"
    )  # the tag's number said to be text
    (tmp_path / "a.png").write_bytes(text)
    with pytest.raises(FileError, match="required argument is not an integer"):
        pictures.read_folder(tmp_path, 4, caption="x")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(FileError, match="a PNG, JPEG or WebP file"):
        pictures.read_folder(tmp_path, 4, caption="x")


def test_pictures_that_are_too_large(tmp_path, monkeypatch):
    """By the limit here, and by Pillow's, which warns of a pixel above it and refuses the double."""
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pictures.read_folder(tmp_path, 4, caption="x")) == 1
    for name, place, most in (("_MOST_PIXELS", pictures, 15), ("MAX_IMAGE_PIXELS", Image, 7)):
        monkeypatch.setattr(place, name, most)
        with pytest.raises(FileError, match="a larger picture, expected at most 1"):
            pictures.read_folder(tmp_path, 4, caption="x")
        monkeypatch.setattr(pictures, "_MOST_PIXELS", 16)
