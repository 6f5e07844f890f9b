"""Scores of drawn digits: how many show what they should, in the style that they should have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.data import digits
from lora_jax.diffusion.judge import Judge, loss
from lora_jax.methods import full
from lora_jax.training import ArrayBatches, Trainer, TrainSettings

FOLDER = "judge"  # of the base's run
STYLES = (digits.PLAIN, *digits.STYLES)
_SEED, _EPOCHS, _BATCH = 0, 6, 64


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
        """Shares of the pictures that show the digit, and that are in the style."""
        content, in_style = self.answers(pictures)
        return {
            "content": float(np.mean(content == contents)),
            "style": float(np.mean(in_style == STYLES.index(style))),
        }


def scorer(folder: Path, side: int) -> Scorer:
    """Trains the judge on all training digits in all styles, or reads it back.

    Args:
      folder: of the judge; it is made by the base's run.
      side: of the pictures.
    """
    trainer = Trainer(
        Judge(side, 1, len(digits.NAMES), len(STYLES), nnx.Rngs(_SEED)), full(),
        TrainSettings(epochs=_EPOCHS, learning_rate=3e-3),
    )  # fmt: skip
    train, held_out = (_all_styles(split, side) for split in ("train", "held_out"))

    def accuracy(model: nnx.Module) -> dict[str, float]:
        content, style = _answers(model, held_out["pictures"])
        right = {"content": content == held_out["contents"], "style": style == held_out["styles"]}
        return {name: float(np.mean(values)) for name, values in right.items()}

    batches = ArrayBatches(train, _BATCH, seed=_SEED, drop_last=True)
    result = trainer.fit(
        batches, loss, folder, evaluate=accuracy, headline="content", label="judge"
    )
    model = trainer.model(result.best)
    best = result.progress.history[result.progress.best - 1]
    named = {name: best[name] for name in ("content", "style")}
    return Scorer(named, lambda pictures: _answers(model, pictures))


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
