"""What a run of `experiments.diffusion` shows its model, and what it is judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from experiments.diffusion.bases import Base
from experiments.runs.diffusion_fields import DIGITS
from lora_jax import digests
from lora_jax.data import digits, pictures
from lora_jax.data.digits import Digits
from lora_jax.diffusion.words import NOTHING, Words
from lora_jax.errors import InputError

NEW = "new"  # a word for something of one's own
WORDS = Words((NOTHING, "a", *digits.NAMES, NEW), length=3)


@dataclasses.dataclass(frozen=True)
class Shown:
    """Pictures with captions, and what samples should look like.

    Attributes:
      pictures: from -1 to 1; channels last.
      captions: of each.
      held_out, held_out_captions: others of their kind, whose loss is measured.
      contents: digits that samples of the run shall show; () where nothing tells digits.
      style: of digits, that they shall have.
    """

    pictures: Float[np.ndarray, "n size size channels"]
    captions: list[str]
    held_out: Float[np.ndarray, "m size size channels"]
    held_out_captions: list[str]
    contents: tuple[int, ...] = ()
    style: str = digits.PLAIN

    @property
    def digest(self) -> str:
        """Of pictures and captions."""
        arrays = digests.of_arrays({"pictures": self.pictures, "held_out": self.held_out})
        return digests.of_texts([arrays, *self.captions, *self.held_out_captions])


def of_digits(train: Digits, held_out: Digits, contents: Sequence[int], style: str) -> Shown:
    """Digits to train on."""
    return Shown(
        train.pictures, train.captions, held_out.pictures, held_out.captions, tuple(contents), style
    )


def whole(config: ConfigDict) -> Shown:
    """The digits that a new model learns."""
    side, left_out = config.data.side, config.data.left_out
    kept = [number for number in range(10) if number not in left_out]
    if not kept:
        raise InputError("config.data.left_out names all digits: there is nothing to learn")
    train, held_out = (
        digits.without(digits.read(split, side), left_out) for split in ("train", "held_out")
    )
    return of_digits(train, held_out, kept, digits.PLAIN)


def few(config: ConfigDict, base: Base, known: Sequence[int]) -> Shown:
    """The pictures that an adapter learns.

    Args:
      config: of the run.
      base: that is adapted.
      known: digits that the base knows; () for a base of other pictures.

    Raises:
      MissingFileError, InputError: no pictures, or not of the base's kind.
    """
    data = config.data
    if data.source != DIGITS:
        found = pictures.read_folder(
            Path(data.source).expanduser(), base.size, base.channels, data.caption
        )
        count = min(len(found), 16)
        return Shown(found.pictures, found.captions, found.pictures[:count], found.captions[:count])
    if not known:
        raise InputError(
            f"config.data.source is {DIGITS!r}, but {base.name} is no run of experiments.diffusion on "
            "digits; name a folder of pictures"
        )
    chosen = data.classes or known
    train, held_out = (digits.read(split, base.size, data.style) for split in ("train", "held_out"))
    train, held_out = (d.where(np.isin(d.classes, chosen)) for d in (train, held_out))
    return of_digits(train.first_of_each(data.count), held_out, chosen, data.style)
