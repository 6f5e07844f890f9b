"""Captions as rows of a table of words: the text encoder of small diffusion models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lora_jax.errors import InputError, did_you_mean

NOTHING = ""  # the word behind a caption's end, and all of an empty caption


@dataclasses.dataclass(frozen=True)
class Words:
    """The words that captions may have.

    Attributes:
      words: of the table's rows, the first one `NOTHING`.
      length: words of the longest caption.
    """

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        if self.words[:1] != (NOTHING,) or len(set(self.words)) < len(self.words):
            raise InputError(
                f"words must be different, and the first one {NOTHING!r}; got {self.words}"
            )

    def number(self, word: str) -> int:
        """The row of a word; InputError if there is none."""
        if word not in self.words:
            guess = did_you_mean(word, self.words[1:])
            known = ", ".join(self.words[1:])
            raise InputError(f"the model has no word {word!r}{guess}; its words are {known}")
        return self.words.index(word)

    def encode(self, captions: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """The rows of captions, filled up with `NOTHING`; case does not count.

        Raises:
          InputError: a word that the model does not have, or too many of them.
        """
        rows = np.zeros((len(captions), self.length), np.int32)
        for row, caption in zip(rows, captions, strict=True):
            words = caption.lower().split()
            if len(words) > self.length:
                raise InputError(
                    f"the caption {caption!r} has {len(words)} words; the model reads {self.length}"
                )
            row[: len(words)] = [self.number(word) for word in words]
        return rows
