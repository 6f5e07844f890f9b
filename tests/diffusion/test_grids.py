"""Grids of pictures, as pixels and as files."""

import numpy as np
from PIL import Image

from lora_jax.diffusion.grids import grid, to_bytes, write_png


def test_values_become_bytes_and_what_lies_outside_is_cut():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 3.0], np.float32).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(to_bytes(values).ravel(), [0, 0, 128, 255, 255])


def test_pictures_stand_in_rows_with_lines_between(tmp_path):
    pictures = np.stack([np.full((2, 3, 1), v, np.float32) for v in (-1, 0, -0.5)])
    sheet = grid(pictures, columns=2, scale=2)
    assert sheet.shape == (2 * 5 + 1, 2 * 7 + 1, 1)
    assert np.all(sheet[1:5, 1:7] == 0) and np.all(sheet[1:5, 8:14] == 128)
    assert np.all(sheet[6:10, 1:7] == 64) and np.all(sheet[6:10, 8:14] == 255)
    assert np.all(sheet[[0, 5, 10]] == 255) and np.all(sheet[:, [0, 7, 14]] == 255)
    write_png(tmp_path / "grid.png", sheet)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), sheet[..., 0])
