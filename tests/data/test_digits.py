"""Digits and their styles."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lora_jax.data import digits
from lora_jax.errors import InputError


def test_splits_hold_every_digit_of_scikit_learn_once():
    splits = [digits.read(split) for split in ("train", "held_out")]
    assert [len(split) for split in splits] == [1500, 297]
    both = np.concatenate([split.pictures for split in splits])
    assert both.shape == (1797, 8, 8, 1) and both.dtype == np.float32
    pixels = np.sort((both[..., 0] + 1) * 8, axis=0)
    np.testing.assert_array_equal(pixels, np.sort(load_digits().images.astype(np.float32), axis=0))
    labels = np.concatenate([split.classes for split in splits])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(load_digits().target))


def test_large_pictures_show_the_small_ones():
    small, large = digits.read("held_out", 8), digits.read("held_out", 16)
    assert large.pictures.shape == (297, 16, 16, 1)
    means = large.pictures.reshape(297, 8, 2, 8, 2).mean((2, 4))
    # Splines go through the pixels, whose means over 2 x 2 differ a little.
    assert np.corrcoef(means.ravel(), small.pictures.ravel())[0, 1] > 0.98
    assert np.abs(large.pictures).max() <= 1


@pytest.mark.parametrize("side", digits.SIDES)
def test_styles(side):
    plain = digits.read("held_out", side)
    styled = {name: digits.read("held_out", side, name) for name in digits.STYLES}
    np.testing.assert_array_equal(styled["inverted"].pictures, -plain.pictures)
    assert np.all(styled["thick"].pictures >= plain.pictures)
    assert styled["thick"].pictures.mean() > plain.pictures.mean() + 0.1
    # A vertical stroke leans to the right after shearing: its upper end moves there, its lower one away.
    stroke = np.full((1, side, side, 1), -1.0, np.float32)
    stroke[:, :, side // 2] = 1
    leaning = digits.slanted(stroke)[0, :, :, 0]
    columns = ((leaning + 1) * np.arange(side)).sum(1) / np.maximum((leaning + 1).sum(1), 1e-6)
    assert np.all(np.diff(columns[side // 4 : -side // 4]) < 0)
    assert all(np.array_equal(d.classes, plain.classes) for d in styled.values())


def test_the_first_of_each_class_in_turn():
    chosen = digits.read("train").first_of_each(13)
    np.testing.assert_array_equal(chosen.classes, [*range(10), 0, 1, 2])
    assert chosen.captions[3] == "a three"
    some = digits.without(digits.read("train"), (1, 9))
    assert set(some.classes) == set(range(10)) - {1, 9}


def test_what_does_not_exist_is_refused():
    for arguments in (("test",), ("train", 9), ("train", 8, "bold")):
        with pytest.raises(InputError):
            digits.read(*arguments)
    with pytest.raises(InputError, match="left_out"):
        digits.without(digits.read("train"), (10,))
