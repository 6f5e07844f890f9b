"""One run of a task, and the loop over all of its seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from experiments.runs import command_line, fields, folder
from experiments.runs.origins import ADAPTER, NOTE
from experiments.runs.settings import RunSettings
from experiments.runs.task import Task, Trained, check_updates, training_batches
from lora_jax import files
from lora_jax.partition import Params
from lora_jax.sharding.hosts import together
from lora_jax.summary import Summary
from lora_jax.training import Goal, Progress, Trainer
from lora_jax.training.kept import check_best

_Task = TypeVar("_Task", bound=Task)


class Run:
    """One seed of a task: its trainer, and what follows training."""

    def __init__(self, task: Task, seed: int, workdir: Path | None):
        """Loads the model and inserts the task's method.

        Args:
          task: what is learned.
          seed: of the head, of what the method inserts, of dropout and of the order of the examples.
          workdir: of this seed; None where nothing is written.
        """
        self.task, self.seed, self.workdir = task, seed, workdir
        model, key = task.model(seed)
        self.trainer = Trainer(
            model, task.method, task.settings.train, key=key, mesh=task.mesh, head=task.head
        )
        self.trainer.trainable |= task.factors(model, task.method, key)
        self._predict = self.trainer.predictor(task.function)

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """Checks and builds all that training needs; the result trains this seed, or resumes it."""
        task, workdir = self.task, self.folder
        batches = training_batches(task, task.settings, [task.settings.order(self.seed)])
        goal = Goal(
            label=f"{task.name} {task.method.name} seed {self.seed}", headline=task.headline,
            evaluate=self.evaluated, on_best=self.save_adapter,
            smaller_is_better=task.smaller_is_better,
            on_resume=self.resumed,
        )  # fmt: skip
        train = self.trainer.prepare(
            batches, task.loss, goal, seed=self.seed, folder=workdir, inputs=task.inputs
        )
        return lambda: {**train().record(), "shapes": batches.menu.shapes}

    def verify(self) -> None:
        """Raises ValueError if an update does not do what merging says it does; see `lora_jax.verify`."""
        check_updates(self.task, self.trainer)

    def resumed(self, progress: Progress) -> None:
        """Raises ValueError if the adapter of the best epoch before a checkpoint is not there any more."""
        check_best(self.folder, progress)

    def evaluated(self, trainable: Params) -> dict[str, float]:
        """The metrics of these parameters."""
        return self.task.metrics(self.outputs(trainable))

    def outputs(self, trainable: Params) -> list[np.ndarray]:
        """What the task computes of every evaluation batch with these parameters."""
        predict = self._predict(trainable)
        return [predict(batch) for batch in self.task.evaluation_batches]

    def save_adapter(self, trainable: Params, progress: Progress) -> None:
        """Writes this seed's adapter folder."""
        notes = adapter_notes(self.task, self.task.settings, self.seed, progress)
        self.trainer.save(self.folder / "adapter", trainable, notes)

    def trained(self, trainable: Params) -> Trained:
        """The run with trained parameters, for what follows training."""
        return Trained(
            model=self.trainer.model(trainable),
            placement=self.trainer.placement,
            fingerprints=self.trainer.fingerprints(trainable),
            folder=self.folder,
            name=f"seed {self.seed}",
            outputs=partial(self.outputs, trainable),
        )

    @property
    def folder(self) -> Path:
        """The folder of this seed."""
        assert self.workdir is not None, "this run writes, so it needs a folder"
        return self.workdir


def adapter_notes(
    task: Task, settings: RunSettings, seed: int, progress: Progress
) -> dict[str, Any]:
    """What the folder of a run's adapter says of where it comes from."""
    return {
        "task": task.name, "model": settings.model, "seed": seed, "epoch": progress.best,
        "metrics": progress.history[progress.best - 1], **task.description,
        NOTE: dict(task.base),
    }  # fmt: skip


def model_record(summary: Summary, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run record says of the model: parameters by group, and the layers that LoRA adapts.

    Args:
      summary: what the method did to the model.
      layers: see `records.lora_layers`; a record without such layers does not name them.
    """
    return {"parameters": summary.counts(), **({"layers": layers} if layers else {})}


def run_all(
    make_task: Callable[[ConfigDict], _Task],
    config: ConfigDict,
    workdir: Path,
    make_run: Callable[[_Task, int, Path], Run] = Run,
) -> dict[str, Any]:
    """Trains all seeds of a config and does what follows; writes and returns the run record.

    A finished run is read back, an unfinished one is resumed. With `config.epochs=0` nothing is
    trained: the model is taken as it is.

    Args:
      make_task: reads data and model configuration.
      config: of the run.
      workdir: gets result.json, adapter/ (of the best seed) and a folder for each seed.
      make_run: the run of a task, a seed and the seed's folder.

    Raises:
      FileNotFoundError, ValueError, TypeError: bad input, named; it claims no folder. Or another
        program trains in the folder (FolderInUseError), or a file in it is damaged.

    Returns:
      The run record. A seed that diverged is in it as such (`record.check_converged`); the others were
      trained all the same.
    """
    fields.check_run(config)

    def read() -> _Task:
        with together():
            task = make_task(config)
        folder.check_inputs(workdir, task.inputs)
        return task

    return folder.read_or_train(
        workdir, config, read, lambda task: _train_all(task, config, workdir, make_run)
    )


def _train_all(
    task: _Task,
    config: ConfigDict,
    workdir: Path,
    make_run: Callable[[_Task, int, Path], Run],
) -> dict[str, Any]:
    with together():
        task.prepare()
    for split, note in task.notes.items():
        command_line.say(f"{task.name} {split}: {note}")
    runs: dict[int, Mapping[str, Any]] = {}
    for seed in task.settings.seeds:
        run = make_run(task, seed, workdir / f"seed_{seed}")
        train = run.prepare() if task.settings.train.epochs else None
        if not runs:
            if train and task.settings.verify:
                run.verify()
            folder.claim(workdir, config, task.inputs)
            command_line.say(run.trainer.summary)
            model = model_record(run.trainer.summary, run.trainer.layers)
        trained = train() if train else {}
        follows = {} if trained.get("diverged") else task.finish(partial(_best, run))
        runs[seed] = {**trained, **follows}
    result = task.record(task.settings, runs, model)
    if task.settings.train.epochs and result["adapter"] is not None:
        chosen = workdir / f"seed_{result['adapter']['seed']}" / "adapter"
        files.replace_folder(chosen, workdir / "adapter")
    return folder.write_record(workdir, result)


def _best(run: Run) -> Trained:
    """The run at its best epoch, or as it starts where there are no epochs."""
    trainer = run.trainer
    if trainer.settings.epochs:
        return run.trained(trainer.load(run.folder))
    return run.trained(trainer.placement.put(trainer.started(trainer.settings.init_adapter)))


def loaded(task: Task, workdir: Path | None) -> tuple[Run, Params]:
    """A run of the task's first seed, and the parameters of the adapter that the config names.

    Raises:
      FileNotFoundError, ValueError: no adapter, or one of another method or base.
    """
    task.prepare()
    if note := task.notes.get(ADAPTER):
        command_line.say(note)
    run = Run(task, task.settings.seeds[0], workdir)
    return run, run.trainer.load(Path(task.settings.adapter))
