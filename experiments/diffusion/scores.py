"""Scores of drawn digits: how many show what they should, in the style that they should have."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.adapters import DESCRIPTION, load_adapter
from lora_jax.data import digits
from lora_jax.diffusion.judge import Judge, loss
from lora_jax.methods import full
from lora_jax.partition import Params
from lora_jax.training import ArrayBatches, Trainer, TrainSettings

VARIETY = "variety"
FOLDER = "judge"  # of the base's run
STYLES = (digits.PLAIN, *digits.STYLES)
EPOCHS = 5
_SEED, _BATCH = 0, 64


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores pictures of digits.

    Attributes:
      accuracy: of the judge itself on held-out digits: `content` and `style`.
      answers: of pictures: the digit and the number of the style that the judge sees in each.
    """

    accuracy: dict[str, float]
    answers: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    def __call__(self, pictures: np.ndarray, contents: np.ndarray, style: str) -> dict[str, float]:
        """Shares of the pictures that show the digit, that are in the style, and that do both (`right`).

        Besides their variety: the standard deviation of a pixel among pictures of one digit, which is small
        where a model draws what it has learned by heart.
        """
        content, in_style = self.answers(pictures)
        right = {"content": content == contents, "style": in_style == STYLES.index(style)}
        right["right"] = right["content"] & right["style"]
        of_digit = [pictures[contents == number] for number in np.unique(contents)]
        variety = float(np.mean([drawn.std(axis=0) for drawn in of_digit]))
        return {
            **{name: float(np.mean(values)) for name, values in right.items()},
            VARIETY: variety,
        }


def scorer(folder: Path, side: int, *, keep: bool) -> Scorer:
    """Reads the judge of a folder, or trains it on all training digits in all styles.

    Args:
      folder: of the judge.
      side: of the pictures.
      keep: whether one that was trained is written there.
    """
    judge = Judge(side, 1, len(digits.NAMES), len(STYLES), nnx.Rngs(_SEED))
    settings = TrainSettings(epochs=EPOCHS, learning_rate=3e-3)
    trainer = Trainer(judge, full(), settings)
    if (folder / DESCRIPTION).is_file():
        values, notes = trainer.load(folder), load_adapter(folder).notes
    else:
        with tempfile.TemporaryDirectory() as place:
            values, notes = _trained(trainer, side, Path(place))
        if keep:
            trainer.save(folder, values, notes)
    model = trainer.model(values)
    accuracy = {name: float(notes["metrics"][name]) for name in ("content", "style")}
    return Scorer(accuracy, lambda pictures: _answers(model, pictures))


def _trained(trainer: Trainer, side: int, place: Path) -> tuple[Params, dict[str, Any]]:
    train, held_out = (_all_styles(split, side) for split in ("train", "held_out"))

    def accuracy(model: nnx.Module) -> dict[str, float]:
        content, style = _answers(model, held_out["pictures"])
        right = {"content": content == held_out["contents"], "style": style == held_out["styles"]}
        return {name: float(np.mean(values)) for name, values in right.items()}

    batches = ArrayBatches(train, _BATCH, seed=_SEED, drop_last=True)
    result = trainer.fit(batches, loss, place, evaluate=accuracy, headline="content", label="judge")
    return result.best, {"metrics": result.progress.history[result.progress.best - 1]}


@nnx.jit
def _logits(model: nnx.Module, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits: tuple[jax.Array, jax.Array] = model(pictures)  # type: ignore[operator]
    return logits


def _answers(model: nnx.Module, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    content, style = _logits(model, jnp.asarray(pictures))
    return np.argmax(content, -1), np.argmax(style, -1)


def _all_styles(split: str, side: int) -> dict[str, np.ndarray]:
    """Digits of a split in all styles."""
    of_style = [digits.read(split, side, style) for style in STYLES]
    return {
        "pictures": np.concatenate([d.pictures for d in of_style]),
        "contents": np.concatenate([d.classes for d in of_style]).astype(np.int32),
        "styles": np.repeat(np.arange(len(STYLES), dtype=np.int32), len(of_style[0])),
    }
