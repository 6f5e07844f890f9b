"""The trainer: a model, a method and settings in, a trained adapter and its record out.

trainer = Trainer(model, method, TrainSettings(epochs=3))
result = trainer.fit(ArrayBatches({"x": x, "y": y}, batch_size=32), loss, "runs/mine")
merged = lora_jax.merge(trainer.model(result.best))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from lora_jax import adapter_files, adapters, inputs, locking, run_files, run_folder
from lora_jax.arguments import FOLDER, FUNCTION, MODEL, TEXT, Kind, Model, takes
from lora_jax.checks import json_values
from lora_jax.costs import flops
from lora_jax.data.ahead import ahead
from lora_jax.errors import DivergedError, InputError
from lora_jax.files import write_json
from lora_jax.inputs import INIT_ADAPTER, START, Inputs
from lora_jax.method import METHOD, Method
from lora_jax.partition import Params
from lora_jax.ranges import SEED, Whole, check
from lora_jax.sharding.hosts import from_main
from lora_jax.sharding.mesh import RUN
from lora_jax.training import loop, step
from lora_jax.training.adapted_model import AdaptedModel
from lora_jax.training.given import numbers, scalar
from lora_jax.training.goal import FitResult, Goal
from lora_jax.training.kept import check_best, check_record
from lora_jax.training.loop import Batches, whole_epoch
from lora_jax.training.progress import Progress
from lora_jax.training.records import environment, peak_memory
from lora_jax.training.settings import TrainSettings

LOSS = "loss"
_SETTINGS = Kind((TrainSettings,), "TrainSettings, such as TrainSettings(epochs=3)")
_BATCHES = Kind(
    (Batches,), "batches with per_epoch, epoch and count, such as ArrayBatches(arrays, 32)"
)
_BATCHES_OR_NONE = Kind((Batches, type(None)), f"{_BATCHES.words}, or None")
_FUNCTION_OR_NONE = Kind((*FUNCTION.of, type(None)), f"{FUNCTION.words}, or None")
_REMEDY = "Use another folder, or the same method and settings to resume it"


class Trainer(AdaptedModel[Model]):
    """An `AdaptedModel` with the settings of its training."""

    @takes(model=MODEL, method=METHOD, settings=_SETTINGS)
    def __init__(
        self,
        model: Model,
        method: Method,
        settings: TrainSettings,
        *,
        key: Key[Array, ""] | None = None,
        mesh: Mesh | None = None,
        head: str | None = None,
        share_frozen_with: AdaptedModel[Model] | None = None,
    ):
        """Inserts the method; arguments as of `AdaptedModel`, the type of the base from the settings."""
        super().__init__(
            model, method, key=key, mesh=mesh, head=head, dtype=settings.dtype,
            share_frozen_with=share_frozen_with,
        )  # fmt: skip
        self.settings = settings

    def prepare(
        self,
        batches: Batches,
        loss: step.Loss[Model],
        goal: Goal,
        *,
        seed: int,
        folder: Path,
        inputs: Inputs | None = None,
    ) -> Callable[[], Progress]:
        """Checks and builds all that the training of one run needs, and touches no file.

        Args:
          batches: the training data.
          loss: of (model, batch, key); the key switches dropout on.
          goal: how the run is judged.
          seed: of dropout.
          folder: of the run: checkpoints, metrics.jsonl, TensorBoard.
          inputs: what the run is made from, for the records of its checkpoints.

        Returns:
          A function that trains, or resumes, in `folder`.

        Raises:
          ValueError: the mesh has an axis of runs, the warm-up is longer than the run, or the adapter
            that starts the run does not fit.
        """
        if (ways := self.placement.mesh.shape[RUN]) > 1:
            raise InputError(
                f"mesh: run={ways} splits the runs of a sweep (experiments.sweep); this is one run: use "
                "data, fsdp or model"
            )
        seed, loss = check("seed", seed, SEED), scalar(loss)
        if not self.settings.init_adapter:
            self.start_from_gradients(loss, batches, self.settings.gradient_batches)
        trainable = self.started(self.settings.init_adapter)
        labels = {path: self.labels[path] for path in trainable}
        schedule, tx = self.settings.optimizer(labels, batches.per_epoch, of_method=self.of_method)
        settings = self.settings.loop(
            schedule, batches.per_epoch, headline=goal.headline, smaller_is_better=goal.smaller_is_better,
            label=goal.label,
        )  # fmt: skip
        dropout_key = jax.random.key(seed + 1, impl=self.settings.prng)
        train_step = step.make_train_step(self.structure, loss, tx, self.placement, trainable)
        objective = step.make_objective(self.structure, loss)

        def flops_of(batch: Any) -> int:
            return flops.training(objective, trainable, self.frozen, batch, dropout_key)

        def train() -> Progress:
            placed = self.placement.put(trainable)
            _, progress = loop.fit(
                settings, train_step, batches,
                evaluate=goal.evaluate, trainable=placed,
                state=self.placement.initial_state(tx.init, placed), frozen=self.frozen,
                key=self.placement.replicate(dropout_key), folder=folder, on_best=goal.on_best,
                place=self.placement.batch, flops=flops_of, on_resume=goal.on_resume,
                inputs=inputs,
            )  # fmt: skip
            return progress

        return train

    @takes(
        batches=_BATCHES, loss=FUNCTION, folder=FOLDER, validation=_BATCHES_OR_NONE,
        evaluate=_FUNCTION_OR_NONE, headline=TEXT, label=TEXT,
    )  # fmt: skip
    def fit(
        self,
        batches: Batches,
        loss: step.Loss[Model],
        folder: str | os.PathLike[str],
        *,
        validation: Batches | None = None,
        evaluate: Callable[[Model], Mapping[str, float]] | None = None,
        headline: str = LOSS,
        smaller_is_better: bool | None = None,
        seed: int = 0,
        label: str = "train",
    ) -> FitResult:
        """Trains with a progress bar, checkpoints and records; resumes a run that was stopped.

        The folder gets config.json, metrics.jsonl, tensorboard/, checkpoints/, adapter/ (the best
        epoch's) and result.json. A finished run is read back.

        Args:
          batches: the training data, such as `ArrayBatches`.
          loss: of (model, batch, key), a scalar; the key is for dropout, and None in evaluation.
          folder: of this run.
          validation: batches whose mean loss, without dropout, is the metric `loss` of every epoch. If
            neither it nor `evaluate` is given, these are the training data.
          evaluate: further metrics of the model, in evaluation mode, after every epoch.
          headline: the metric that chooses the best epoch.
          smaller_is_better: whether a smaller headline is better; if not given, for the loss only.
          seed: of dropout.
          label: shown at the progress bar.

        Raises:
          ValueError: the folder holds a run with other settings or on other data, no epochs, batches
            that the devices cannot share, or a headline that is not among the metrics.
          DivergedError: the loss, the gradient or the parameters were not finite. The best epoch before, if
            there was one, is in the folder, and result.json says at which step the run ended.
        """
        seed, folder = check("seed", seed, SEED), Path(folder)
        if smaller_is_better is None:
            smaller_is_better = headline == LOSS
        values = {
            "method": self.method.to_json(), "base": self._base_of_run(folder), "seed": seed,
            "headline": headline, "smaller_is_better": smaller_is_better,
            "batches_per_epoch": batches.per_epoch, **dataclasses.asdict(self.settings),
        }  # fmt: skip
        config = run_folder.plain(json_values(values))
        given = {"training data": batches, "validation data": validation}
        data = {name: mark for name, b in given.items() if (mark := getattr(b, "digest", None))}
        data |= {START: self.start, **self._init_adapter()}
        if (result := self._finished(folder, config, data)) is not None:
            return result
        if not self.settings.epochs:
            raise InputError("epochs is 0: there is nothing to train")
        if validation is None and evaluate is None:
            validation = batches
        if evaluate is None and headline != LOSS:
            raise InputError(
                f"the headline {headline!r} is not among the metrics [{LOSS!r}]; give `evaluate`, a function "
                "of the model that returns it"
            )
        self._try_batches(batches, validation or batches)
        mean_loss = None if validation is None else self._mean_loss(loss, validation)

        def metrics(trainable: Params) -> dict[str, float]:
            values = {} if mean_loss is None else {LOSS: mean_loss(trainable)}
            return values | (numbers(evaluate(self._evaluated(trainable))) if evaluate else {})

        def save(trainable: Params, progress: Progress) -> None:
            notes = {"epoch": progress.best, "metrics": progress.history[-1]}
            self.save(folder / "adapter", trainable, notes)

        goal = Goal(
            label=label, headline=headline, evaluate=metrics, on_best=save,
            smaller_is_better=smaller_is_better,
            on_resume=lambda progress: check_best(folder, progress),
        )  # fmt: skip
        train = self.prepare(batches, loss, goal, seed=seed, folder=folder, inputs=data)
        with locking.exclusive(folder):
            result = self._finished(folder, config, data, held=True)
            if result is not None:  # of another program, just now
                return result
            inputs.write(
                folder, data
            )  # first: a claimed folder always says what its run is made from
            if not run_folder.claim(folder, config):
                raise InputError(
                    f"the folder {folder} is not the same on all hosts; use a shared one"
                )
            progress = train()
            unsigned = {**self._record(progress, headline, config), "inputs": data}
            record = from_main(lambda: run_files.signed(folder, run_folder.plain(unsigned)))
            write_json(folder / run_folder.RESULT, record)
        return self._result(folder, progress, record)

    def _result(self, folder: Path, progress: Progress, record: dict[str, Any]) -> FitResult:
        if progress.diverged:
            raise DivergedError({"this run": progress.diverged}, folder)
        return FitResult(self.load(folder), progress, record)

    def _finished(
        self, folder: Path, config: Mapping[str, Any], data: Inputs, *, held: bool = False
    ) -> FitResult | None:
        """The result of a finished run, read back and checked."""

        def read() -> dict[str, Any] | None:
            record = run_folder.finished(folder, config, (), _REMEDY)
            inputs.check(folder, data, _REMEDY)
            if record is not None:
                run_files.check(folder, record, adapters.load_adapter, held=held)
                check_record(folder / run_folder.RESULT, record)
            return record

        record = from_main(read)
        if record is None:
            return None
        return self._result(folder, Progress.from_record(record), record)

    def _record(
        self, progress: Progress, headline: str, config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The content of result.json."""
        return {
            "method": self.method.name, "headline": headline, "parameters": self.summary.counts(),
            "layers": self.layers, **progress.record(), "config": config, "memory": peak_memory(),
            **environment(),
        }  # fmt: skip

    def _init_adapter(self) -> dict[str, str]:
        """The digest of the adapter whose factors start the run, if there is one."""
        if not (path := self.settings.init_adapter):
            return {}
        folder = adapters.adapter_folder(Path(path))
        return {INIT_ADAPTER: adapter_files.digest(adapters.load_adapter(folder))}

    def _base_of_run(self, folder: Path) -> str:
        """The fingerprint by which the run in a folder knows this base; see `bases`."""
        there = from_main(lambda: run_folder.setting(folder, "base"))
        return there if there in self.bases else self.base

    def _evaluated(self, trainable: Params) -> Model:
        model = self.model(trainable)
        model.eval()
        return model

    def _try_batches(self, *several: Batches) -> None:
        """Places the first and the last batch of an epoch, which may be smaller, before a folder is made."""
        for batches in several:
            check("per_epoch of the batches", batches.per_epoch, Whole())
            for number in dict.fromkeys((0, batches.per_epoch - 1)):
                of_epoch = whole_epoch(batches, 0, number)
                self.placement.batch(next(of_epoch))
            next(of_epoch, None)  # one too many is an error

    def _mean_loss(self, loss: step.Loss[Model], batches: Batches) -> Callable[[Params], float]:
        """Builds the mean loss of trainable parameters over the examples of some batches."""
        loss = scalar(loss)
        predict = self.predictor(lambda model, batch: loss(model, batch, None))

        def mean(trainable: Params) -> float:
            of_batch = predict(trainable)
            with ahead(whole_epoch(batches, 0)) as stream:
                pairs = [(batches.count(b).examples, float(of_batch(b))) for b in stream]
            return float(np.average([v for _, v in pairs], weights=[n for n, _ in pairs]))

        return mean
