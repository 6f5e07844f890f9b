"""Handwritten digits of scikit-learn as small grey pictures with captions, plain and in styles.

1,797 digits of 8 x 8 pixels, UCI's "Optical recognition of handwritten digits" (Alpaydin and Kaynak 1998),
which the package brings along: data for machines that reach no hub.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lora_jax.ranges import OneOf, Whole, check

Pictures = Float[np.ndarray, "n size size 1"]
SIDE = 8  # pixels, of the files
SIDES = (8, 16)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLAIN = "plain"
_BRIGHTEST = 16.0  # of a pixel in the files
_HELD_OUT = 297
_ORDER = 0  # seed of the split


@dataclasses.dataclass(frozen=True)
class Digits:
    """Digits in one style.

    Attributes:
      pictures: from -1 (paper) to 1 (ink).
      classes: the digit that each shows.
    """

    pictures: Pictures
    classes: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.classes)

    def where(self, chosen: Bool[np.ndarray, " n"] | Int[np.ndarray, " m"]) -> Digits:
        """Some of them."""
        return Digits(self.pictures[chosen], self.classes[chosen])

    @property
    def captions(self) -> list[str]:
        """Their captions, such as `a three`."""
        return [caption(number) for number in self.classes.tolist()]

    def first_of_each(self, count: int) -> Digits:
        """The first `count` of them, taken from each class in turn."""
        turns = np.zeros(len(self), np.int64)
        for number in np.unique(self.classes):
            turns[self.classes == number] = np.arange(np.sum(self.classes == number))
        return self.where(np.lexsort((self.classes, turns))[:count])


def caption(number: int) -> str:
    """The caption of a digit."""
    return f"a {NAMES[number]}"


def read(split: str, side: int = SIDE, style: str = PLAIN) -> Digits:
    """Digits of a split.

    Args:
      split: `train` (1,500 digits) or `held_out` (297), drawn once for all.
      side: pixels: 8, or 16 for pictures that were enlarged smoothly.
      style: `plain`, or one of `STYLES`.

    Raises:
      InputError: another split, side or style.
    """
    check("split", split, OneOf(("train", "held_out")))
    check("style", style, OneOf((PLAIN, *STYLES)))
    check("side", side, OneOf(SIDES))
    found = everything(side)
    order = np.random.default_rng(_ORDER).permutation(len(found))
    chosen = found.where(order[_HELD_OUT:] if split == "train" else order[:_HELD_OUT])
    return chosen if style == PLAIN else Digits(STYLES[style](chosen.pictures), chosen.classes)


@functools.cache
def everything(side: int = SIDE) -> Digits:
    """All digits in scikit-learn's order; other sides than 8 are enlarged smoothly."""
    from sklearn.datasets import load_digits  # takes long to import, and few programs need it

    found = load_digits()
    scaled = found.images.astype(np.float32) * (2 / _BRIGHTEST) - 1
    return Digits(_enlarged(scaled[..., None], side), found.target.astype(np.int64))


def _enlarged(pictures: Pictures, side: int) -> Float[np.ndarray, "n side side 1"]:
    if side == SIDE:
        return pictures
    from scipy import ndimage

    times = side / SIDE
    zoomed = ndimage.zoom(
        pictures, (1, times, times, 1), order=3, mode="nearest", grid_mode=True
    )  # fmt: skip
    return np.asarray(np.clip(zoomed, -1, 1), np.float32)


def inverted(pictures: Pictures) -> Pictures:
    """Light on dark."""
    return -pictures


def slanted(pictures: Pictures) -> Pictures:
    """Sheared, so that the top lies to the right; the middle row stays."""
    from scipy import ndimage

    side = pictures.shape[1]
    middle = (side - 1) / 2
    matrix = np.array([[1.0, 0.0], [_SLANT, 1.0]])
    offset = [0.0, -_SLANT * middle]
    sheared = [
        ndimage.affine_transform(picture[..., 0], matrix, offset, order=1, cval=-1.0)
        for picture in pictures
    ]
    return np.stack(sheared)[..., None].astype(np.float32)


def thick(pictures: Pictures) -> Pictures:
    """With broader strokes: every pixel as dark as the darkest in a window around it."""
    from scipy import ndimage

    window = 1 + pictures.shape[1] // SIDE
    return np.asarray(ndimage.grey_dilation(pictures, (1, window, window, 1), mode="nearest"))


_SLANT = 0.6  # columns for each row
STYLES: Mapping[str, Callable[[Pictures], Pictures]] = {
    "inverted": inverted,
    "slanted": slanted,
    "thick": thick,
}


def without(digits: Digits, left_out: Sequence[int]) -> Digits:
    """The digits but for some classes.

    Raises:
      InputError: a number that is no digit.
    """
    for number in left_out:
        check("left_out", number, Whole(least=0, most=9))
    return digits.where(~np.isin(digits.classes, list(left_out)))
