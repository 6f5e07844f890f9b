"""One run of `experiments.diffusion`: a model that learns to draw, or an adapter of one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from experiments.diffusion.bases import Base
from experiments.diffusion.data import Shown
from experiments.diffusion.drawing import Drawing
from experiments.diffusion.scores import Scorer
from experiments.runs import command_line, folder
from experiments.runs.record import training_record
from experiments.runs.settings import train_settings
from lora_jax import files
from lora_jax.data.digits import caption
from lora_jax.diffusion import captioned, losses
from lora_jax.diffusion.grids import grid, write_png
from lora_jax.inputs import Inputs
from lora_jax.method import Method
from lora_jax.partition import Params
from lora_jax.run_files import ADAPTER, MODEL
from lora_jax.sharding.hosts import is_main
from lora_jax.sharding.mesh import make_mesh
from lora_jax.training import ArrayBatches, Goal, Progress, Trainer
from lora_jax.training.kept import check_best

LOSS, RIGHT = "loss", "right"  # headlines
SAMPLES = "samples"  # folder of the grids of every epoch
_SMALL = 64  # pixels, up to which grids are enlarged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run is made of.

    Attributes:
      task: its name.
      config: of the run.
      base: the model that learns, or that is adapted.
      method: what trains.
      shown: pictures.
      inputs: digests of what the run is made from.
      prior: draws pictures that keep the base as it is, with their captions; None for none.
      judge: reads or trains the scorer of digits; None for other pictures.
      captions: of the pictures that are drawn.
      contents: the digit that each of them shall show.
      save: writes the model of the best epoch, in place of an adapter.
    """

    task: str
    config: ConfigDict
    base: Base
    method: Method
    shown: Shown
    inputs: Inputs
    prior: Callable[[], tuple[np.ndarray, list[str]]] | None = None
    judge: Callable[[], Scorer] | None = None
    captions: Sequence[str] = ()
    contents: np.ndarray | None = None
    save: Callable[[nnx.Module], None] | None = None

    @functools.cached_property
    def scorer(self) -> Scorer | None:
        """Of what is drawn. A new judge trains for a minute, so that all checks come first."""
        return None if self.judge is None else self.judge()

    @property
    def headline(self) -> str:
        """What chooses the best epoch.

        The held-out loss rises while ten pictures are learned by heart and samples still get better: of
        adapters it is their score, where there is one.
        """
        return LOSS if self.save is not None or self.judge is None else RIGHT

    @property
    def drawing(self) -> Drawing:
        """How its samples are drawn."""
        given = self.config.samples
        return Drawing(given.sampler, given.steps, given.guidance, given.seed)

    def scores(self, pictures: np.ndarray) -> dict[str, float]:
        """Of pictures of `captions`; {} where nothing tells what they show.

        `content` and `style` are of what the run learns, `others` is the content of what it shall keep.
        """
        if self.scorer is None or self.contents is None:
            return {}
        own = np.isin(self.contents, self.shown.contents)
        scores = self.scorer(pictures[own], self.contents[own], self.shown.style)
        if own.all():
            return scores
        others = self.scorer(pictures[~own], self.contents[~own], self.shown.style)
        return {**scores, "others": others["content"]}

    def sheet(self, pictures: np.ndarray) -> np.ndarray:
        """A grid with a row for each caption."""
        columns = min(self.config.samples.count, 20)
        scale = max(1, _SMALL // pictures.shape[1] // 2)
        return grid(pictures, columns, scale)


def captions_of(contents: Sequence[int], count: int) -> tuple[list[str], np.ndarray]:
    """Captions of digits, `count` of each, and the digit of every caption."""
    of_each = np.repeat(np.asarray(contents, np.int64), count)
    return [caption(number) for number in of_each.tolist()], of_each


def loss_of(base: Base, config: ConfigDict) -> Callable[..., jax.Array]:
    """The training loss of a batch, with that of the prior's pictures where the batch has some."""
    schedule, empty, gamma = base.schedule, base.empty[0], config.snr_gamma
    weight = config.get("prior", {}).get("weight", 0.0)

    def loss(model: nnx.Module, batch: Any, key: jax.Array | None) -> jax.Array:
        key = jax.random.key(0) if key is None else key
        own = {name: batch[name] for name in ("inputs", "captions")}
        if "prior" in batch:  # in one pass with the others, as DreamBooth does
            own = jax.tree.map(lambda *two: jnp.concatenate(two), own, batch["prior"])
        for_noise, for_captions = jax.random.split(key)
        noise, times = losses.draw(schedule, for_noise, own["inputs"])
        rate = config.caption_dropout
        captions = losses.without_some(for_captions, own["captions"], empty, rate)
        denoise = functools.partial(_output, model, captions=captions)
        of_each = losses.denoising_losses(schedule, denoise, own["inputs"], noise, times, gamma)
        count = len(batch["inputs"])
        total = jnp.mean(of_each[:count])
        return total + weight * jnp.mean(of_each[count:]) if "prior" in batch else total

    return loss


def errors_of(base: Base) -> Callable[[nnx.Module, Any], jax.Array]:
    """The loss of every picture of a batch that has noise and timesteps."""

    def errors(model: nnx.Module, batch: Any) -> jax.Array:
        denoise = functools.partial(_output, model, captions=batch["captions"])
        return losses.denoising_losses(
            base.schedule, denoise, batch["inputs"], batch["noise"], batch["timesteps"]
        )

    return errors


def _output(model: nnx.Module, x: jax.Array, times: jax.Array, *, captions: jax.Array) -> jax.Array:
    output: jax.Array = model(x, times, captions)  # type: ignore[operator]
    return output


def training_arrays(run: Run) -> dict[str, Any]:
    """What an epoch shows: every picture `data.repeats` times, each beside one of the prior's."""
    repeats, base = run.config.data.repeats, run.base
    own = np.tile(np.arange(len(run.shown.captions)), repeats)
    inputs, captions = base.to_inputs(run.shown.pictures), base.encode(run.shown.captions)
    arrays: dict[str, Any] = {"inputs": inputs[own], "captions": captions[own]}
    if run.prior is not None:
        pictures, texts = run.prior()
        order = np.random.default_rng(run.config.seed).permutation(len(texts))
        beside = np.resize(order, len(own))
        arrays["prior"] = {
            "inputs": base.to_inputs(pictures)[beside], "captions": base.encode(texts)[beside]
        }  # fmt: skip
    return arrays


def held_out_batch(run: Run) -> dict[str, np.ndarray]:
    """Held-out pictures with noise and timesteps that are the same in every epoch."""
    inputs = run.base.to_inputs(run.shown.held_out)
    rng, steps = np.random.default_rng(run.config.seed), run.base.schedule.num_train_timesteps
    times = (np.arange(len(inputs)) + 0.5) * steps / len(inputs)
    return {
        "inputs": inputs, "captions": run.base.encode(run.shown.held_out_captions),
        "noise": rng.standard_normal(inputs.shape).astype(np.float32),
        "timesteps": rng.permutation(times.astype(np.int32)),
    }  # fmt: skip


class Training:
    """The training of a run: its trainer, and what follows every epoch."""

    def __init__(self, run: Run, workdir: Path):
        """Checks settings, then draws the prior and encodes pictures, which takes long; writes nothing."""
        self.run, self.workdir, config = run, workdir, run.config
        self.trainer = Trainer(
            run.base.model, run.method, train_settings(config), key=jax.random.key(config.seed),
            mesh=make_mesh(config.mesh.to_dict()),
        )  # fmt: skip
        self._draw = self.trainer.predictor(run.drawing.function(run.base))
        batches = functools.partial(
            ArrayBatches, batch_size=config.batch_size, seed=config.seed, drop_last=True
        )
        numbers = np.arange(len(run.shown.captions) * config.data.repeats)
        per_epoch, of_method = batches(numbers).per_epoch, self.trainer.of_method
        self.trainer.settings.optimizer(self.trainer.labels, per_epoch, of_method=of_method)
        self.batches = batches(training_arrays(run))
        self._held_out = held_out_batch(run)
        self._errors = self.trainer.predictor(errors_of(run.base))
        self._starts = run.drawing.batches(run.base, run.captions)
        self._epoch = 0

    def drawn(self, trainable: Params) -> np.ndarray:
        """Pictures of the run's captions."""
        draw = self._draw(trainable)
        return self.run.base.to_pictures(np.concatenate([draw(batch) for batch in self._starts]))

    def evaluated(self, trainable: Params) -> dict[str, float]:
        """The held-out loss and the scores of samples, of which it writes a grid."""
        self._epoch += 1
        pictures = self.drawn(trainable)
        self._write(f"{SAMPLES}/epoch_{self._epoch:03d}.png", pictures)
        loss = float(np.mean(self._errors(trainable)(self._held_out)))
        return {LOSS: loss, **self.run.scores(pictures)}

    def save(self, trainable: Params, progress: Progress) -> None:
        """Writes the best epoch: the adapter, or a new model."""
        if self.run.save is not None:
            self.run.save(self.trainer.model(trainable))
            return
        notes = {
            "task": self.run.task, "model": self.run.base.name, "epoch": progress.best,
            "metrics": progress.history[progress.best - 1],
        }  # fmt: skip
        self.trainer.save(self.workdir / ADAPTER, trainable, notes)

    def resumed(self, progress: Progress) -> None:
        """Raises InputError if what the best epoch has left is not there any more."""
        self._epoch = len(progress.history)
        if self.run.save is None:
            check_best(self.workdir, progress)
        elif progress.best:
            captioned.load(self.workdir / MODEL)

    def train(self) -> dict[str, Any]:
        """Trains or resumes, and writes the record; its content."""
        run, config = self.run, self.run.config
        goal = Goal(
            label=f"{run.task} {run.method.name}", headline=run.headline, evaluate=self.evaluated,
            on_best=self.save, smaller_is_better=run.headline == LOSS, on_resume=self.resumed,
        )  # fmt: skip
        start = self.trainer.prepare(
            self.batches, loss_of(run.base, config), goal, seed=config.seed, folder=self.workdir,
            inputs=run.inputs,
        )  # fmt: skip
        folder.claim(self.workdir, config, run.inputs)
        command_line.say(self.trainer.summary)
        scorer = run.scorer  # before training: a new one is trained itself
        judged = {} if scorer is None else {"judge": scorer.accuracy}
        of_seed = start().record()
        record = {
            "task": run.task, "method": run.method.name, "model": run.base.name, "headline": run.headline,
            "parameters": self.trainer.summary.counts(), "layers": self.trainer.layers,
            "pictures": len(run.shown.captions), **self._compared(of_seed), **judged,
            **training_record([of_seed], run.headline), "inputs": dict(run.inputs),
            "seeds": {str(config.seed): of_seed}, "config": folder.plain(config),
        }  # fmt: skip
        return folder.write_record(self.workdir, record, ADAPTER if run.save is None else MODEL)

    def _compared(self, of_seed: Mapping[str, Any]) -> dict[str, Any]:
        """The scores of the adapter beside those of its base, with a grid of each."""
        if self.run.save is not None or of_seed.get("diverged"):
            return {}
        of = {"before": self.trainer.placement.put(self.trainer.trainable)}
        of["after"] = self.trainer.load(self.workdir / ADAPTER)
        pictures = {when: self.drawn(trainable) for when, trainable in of.items()}
        for when, drawn in pictures.items():
            self._write(f"{when}.png", drawn)
        scores = {when: self.run.scores(drawn) for when, drawn in pictures.items()}
        return {"scores": scores}

    def _write(self, name: str, pictures: np.ndarray) -> None:
        if is_main():
            path = self.workdir / name
            files.make_folder(path.parent)
            write_png(path, self.run.sheet(pictures))
