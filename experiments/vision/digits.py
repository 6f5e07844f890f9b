"""scikit-learn's 1797 digits: upright ones to pre-train on, turned or coloured ones to adapt to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from scipy import ndimage

from lora_jax.data import digits
from lora_jax.errors import InputError

_HELD_OUT = 0.1  # share of the upright digits that chooses the epoch of pre-training


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures and what they show.

    Attributes:
      image: in [0, 1].
      label: the digit.
    """

    image: Float[np.ndarray, "n size size 3"]
    label: Int[np.ndarray, " n"]

    def arrays(self) -> dict[str, np.ndarray]:
        """For `ArrayBatches`."""
        return {"image": self.image, "label": self.label}

    def __getitem__(self, chosen: Any) -> Pictures:
        return Pictures(self.image[chosen], self.label[chosen])


@dataclasses.dataclass(frozen=True)
class Digits:
    """All pictures of an experiment; no digit is in two of them.

    Attributes:
      pretrain, held_out: upright, to pre-train on and to choose its epoch.
      pool: of the task, to adapt with and to choose by.
      test: of the task.
    """

    pretrain: Pictures
    held_out: Pictures
    pool: Pictures
    test: Pictures

    def few(self, count: int, seed: int) -> tuple[Pictures, Pictures]:
        """The examples of a seed to adapt with, and the rest of the pool, which chooses rate and epoch."""
        order = np.random.default_rng([seed, 1]).permutation(len(self.pool.label))
        return self.pool[order[:count]], self.pool[order[count:]]


def load(config: ConfigDict) -> Digits:
    """The digits of a config, as its `data.split_seed` draws them.

    Raises:
      InputError: it asks for more digits than there are.
    """
    data = config.data
    found = digits.everything(data.size)
    total = len(found)
    left = total - data.pretrain_examples - data.test_examples - data.train_examples
    if left < 1:
        raise InputError(
            f"data: pretrain_examples, test_examples and train_examples add up to {total - left}, and there "
            f"are {total} digits, of which some must be left to choose the learning rate by"
        )
    random = np.random.default_rng(data.split_seed)
    order = random.permutation(total)
    ink = (found.pictures[order, ..., 0] + 1) / 2
    labels = found.classes[order].astype(np.int32)
    first, last = data.pretrain_examples, total - data.test_examples
    held_out = max(1, round(_HELD_OUT * first))
    upright = Pictures(_grey(ink[:first]), labels[:first])
    other = Pictures(_of_task(config, ink[first:], random), labels[first:])
    return Digits(
        upright[held_out:], upright[:held_out], other[: last - first], other[last - first :]
    )


def _grey(ink: Float[np.ndarray, "n size size"]) -> Float[np.ndarray, "n size size 3"]:
    """White ink on black."""
    return np.repeat(ink[..., None], 3, axis=-1)


def _of_task(
    config: ConfigDict, ink: Float[np.ndarray, "n size size"], random: np.random.Generator
) -> Float[np.ndarray, "n size size 3"]:
    """What the task makes of digits."""
    if config.task == "rotated":
        jitter = random.uniform(-config.data.jitter, config.data.jitter, len(ink))
        turned = [
            ndimage.rotate(one, config.data.angle + angle, reshape=False, order=1)
            for one, angle in zip(ink, jitter, strict=True)
        ]
        return _grey(np.clip(np.stack(turned), 0, 1).astype(np.float32))
    pens = random.uniform(0.0, 0.4, (len(ink), 1, 1, 3))
    papers = random.uniform(0.6, 1.0, (len(ink), 1, 1, 3))
    coloured = papers + _grey(ink) * (pens - papers)
    return np.asarray(coloured, np.float32)
