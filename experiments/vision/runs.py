"""Pre-training and the runs of all methods, each in a folder of its own, which is resumed or read back."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from experiments.vision import contenders
from experiments.vision.digits import Digits, Pictures
from lora_jax import methods
from lora_jax.errors import DivergedError
from lora_jax.models.vision import files
from lora_jax.run_files import ADAPTER
from lora_jax.training import ArrayBatches, Trainer, TrainSettings
from lora_jax.training.step import make_train_step

BASE = "base"
_logits = nnx.jit(lambda model, images: model(images))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a method.

    Attributes:
      method: its name.
      rate: peak of the learning rate.
      seed: of its examples, their order, and what is inserted.
      validation: accuracy at the best epoch on what is left of the pool; NaN if the run diverged.
      test: the same on the test pictures.
      trained: values, the head's among them.
      adapter_bytes: of the weights in the adapter's folder; 0 if the run diverged.
      seconds: of training, without compilation.
    """

    method: str
    rate: float
    seed: int
    validation: float
    test: float
    trained: int
    adapter_bytes: int
    seconds: float


def loss(model: Any, batch: dict[str, Array], key: jax.Array | None) -> Float[Array, ""]:
    """Mean cross-entropy of a batch."""
    logits = model(batch["image"], key=key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def accuracy(model: nnx.Module, pictures: Pictures) -> float:
    """Share of the pictures that a model in evaluation mode recognises."""
    answers = np.asarray(_logits(model, pictures.image)).argmax(-1)
    return float((answers == pictures.label).mean())


def base(config: ConfigDict, digits: Digits, folder: Path) -> nnx.Module:
    """The net, pre-trained on upright digits."""
    seed = config.data.split_seed
    model = files.make(contenders.net(config), 10, nnx.Rngs(seed))
    settings = TrainSettings(
        epochs=config.pretrain.epochs, learning_rate=config.pretrain.learning_rate
    )
    trainer = Trainer(model, methods.full(files.HEAD), settings)
    result = trainer.fit(
        ArrayBatches(digits.pretrain.arrays(), config.batch_size, seed=seed),
        loss,
        folder / BASE,
        evaluate=lambda model: {"accuracy": accuracy(model, digits.held_out)},
        headline="accuracy",
        label=BASE,
    )
    return trainer.model(result.best)


class Contender:
    """A method on a pre-trained net: its runs, and what a step of it costs."""

    def __init__(self, config: ConfigDict, name: str, pretrained: nnx.Module, digits: Digits):
        self._config, self._digits, self._model = config, digits, nnx.clone(pretrained)
        self.name, self.method = name, contenders.method(name, config.model.kind)
        self.moves = contenders.statistics_move(name, config.statistics)
        # The mode in which the trainer gets the model is that in which it trains.
        (self._model.train if self.moves else self._model.eval)()

    def run(self, rate: float, seed: int, folder: Path) -> Run:
        """Trains, or reads back, the run of a learning rate and a seed."""
        place = folder / self.name / f"rate_{rate:g}" / f"seed_{seed}"
        train, rest = self._digits.few(self._config.data.train_examples, seed)
        trainer = self._trainer(rate, seed)

        def evaluate(model: nnx.Module) -> dict[str, float]:
            return {
                "accuracy": accuracy(model, rest),
                "test_accuracy": accuracy(model, self._digits.test),
            }

        batches = ArrayBatches(train.arrays(), self._config.batch_size, seed=seed)
        best, size, seconds = dict[str, float](), 0, 0.0
        try:
            result = trainer.fit(
                batches, loss, place, evaluate=evaluate, headline="accuracy", seed=seed,
                label=f"{self.name} {rate:g} seed {seed}",
            )  # fmt: skip
            best = result.progress.history[result.progress.best - 1]
            size = sum(file.stat().st_size for file in (place / ADAPTER).glob("*.safetensors"))
            seconds = result.progress.seconds - result.progress.compile_seconds
        except DivergedError:  # a rate that is too high is no fault of the command
            pass
        return Run(
            method=self.name, rate=rate, seed=seed, validation=best.get("accuracy", math.nan),
            test=best.get("test_accuracy", math.nan), trained=trainer.summary.counts()["trainable"],
            adapter_bytes=size, seconds=seconds,
        )  # fmt: skip

    def step_flops(self) -> int:
        """FLOPs of a train step, as XLA counts them in the program before it is optimised.

        What CPUs run instead of a convolution is a call of another library, in which XLA counts nothing.
        """
        trainer = self._trainer(self._config.learning_rates[0], self._config.seeds[0])
        count, size = self._config.batch_size, self._config.data.size
        batch = {
            "image": jax.ShapeDtypeStruct((count, size, size, 3), np.float32),
            "label": jax.ShapeDtypeStruct((count,), np.int32),
        }
        labels = {path: trainer.labels[path] for path in trainer.trainable}
        _, tx = trainer.settings.optimizer(labels, per_epoch=1)
        step = make_train_step(trainer.structure, loss, tx)
        state = jax.eval_shape(tx.init, trainer.trainable)
        lowered = step.lower(trainer.trainable, state, trainer.frozen, batch, jax.random.key(0))
        return int(lowered.cost_analysis()["flops"])

    def _trainer(self, rate: float, seed: int) -> Trainer:
        settings = TrainSettings(epochs=self._config.epochs, learning_rate=rate)
        return Trainer(
            self._model, self.method, settings, key=jax.random.key(seed), head=files.HEAD
        )
