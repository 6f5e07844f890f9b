"""What a task is: everything about it that the loop over seeds and the sweeps need to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments.runs.settings import RunSettings
from lora_jax.data.batch import Batch
from lora_jax.data.batches import BatchesOfRuns, TrainingBatches
from lora_jax.data.packing import Packable
from lora_jax.method import Method
from lora_jax.partition import Params
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import Placement
from lora_jax.training import AdaptedModel
from lora_jax.training.step import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A run at its best epoch, for what follows training.

    Attributes:
      model: the adapted model with the trained parameters.
      placement: of the devices.
      fingerprints: of the base and of the trained parameters.
      folder: of the run.
      name: of the run, at progress bars.
      outputs: gives what the task computes of every evaluation batch.
    """

    model: nnx.Module
    placement: Placement
    fingerprints: Mapping[str, str]
    folder: Path
    name: str
    outputs: Callable[[], list[np.ndarray]]


class Task(Protocol):
    """Data, model and scores of the runs of a config; which seed runs is not its business.

    Attributes:
      name: for records, such as `rte` or `e2e`.
      headline: the metric that chooses the best epoch.
      smaller_is_better: whether a smaller headline is the better one.
      head: regular expression for the paths of the model's task head, if it has one.
      settings: of all runs.
      method: of all runs (in a sweep each point has its own).
      mesh: that the model and the batches are split over.
      width: of the model, for the choice of shapes.
      max_length: tokens of the longest possible example.
      loss: what is trained.
      train: the training examples; None where a run only evaluates.
      evaluation_batches: in order; `metrics` takes what `function` gives for each.
      notes: on the data, by split.
      description: of the data, for records and for the notes of adapters, such as the names of classes.
      inputs: digests of model, tokenizer, data and given adapters, see `lora_jax.inputs`.
      base: what the adapters of the runs say of their base, see `origins`.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def headline(self) -> str: ...  # noqa: D102

    @property
    def smaller_is_better(self) -> bool: ...  # noqa: D102

    @property
    def head(self) -> str | None: ...  # noqa: D102

    @property
    def settings(self) -> RunSettings: ...  # noqa: D102

    @property
    def method(self) -> Method: ...  # noqa: D102

    @property
    def mesh(self) -> Mesh: ...  # noqa: D102

    @property
    def width(self) -> int: ...  # noqa: D102

    @property
    def max_length(self) -> int: ...  # noqa: D102

    @property
    def loss(self) -> Loss: ...  # noqa: D102

    @property
    def train(self) -> Packable | None: ...  # noqa: D102

    @property
    def evaluation_batches(self) -> Sequence[Batch]: ...  # noqa: D102

    @property
    def notes(self) -> Mapping[str, str]: ...  # noqa: D102

    @property
    def description(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def inputs(self) -> Mapping[str, str]: ...  # noqa: D102

    @property
    def base(self) -> Mapping[str, Any]: ...  # noqa: D102

    def shapes(self) -> nnx.Module:
        """The model in shapes; no weight is read."""
        ...

    def prepare(self) -> None:
        """Tokenises and packs all texts; what is wrong with them shows here, before a folder is claimed."""
        ...

    def function(self, model: nnx.Module, batch: Batch) -> jax.Array:
        """What is computed of an evaluation batch."""
        ...

    def model(self, seed: int) -> tuple[nnx.Module, jax.Array]:
        """The pre-trained model as a run starts with it, and the key for what a method inserts."""
        ...

    def start(self, seed: int) -> tuple[Params, jax.Array]:
        """The same without the pre-trained part: the leaves of a fresh head, and the key."""
        ...

    def factors(self, model: nnx.Module, method: Method, key: jax.Array) -> Params:
        """Initial values of a method's low-rank updates that are not its own, by path.

        Args:
          model: from `model`.
          method: of the run.
          key: for what it inserts.
        """
        ...

    def metrics(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        """The scores of one run, from what `function` gave for every evaluation batch."""
        ...

    def finish(self, trained: Callable[[], Trained]) -> dict[str, Any]:
        """What follows training, such as decoding; its part of a seed's record.

        Args:
          trained: gives the run at its best epoch; it reads the adapter, so call it only if needed.
        """
        ...

    def record(
        self,
        settings: RunSettings,
        runs: Mapping[int, Mapping[str, Any]],
        model: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The run record of all seeds.

        Args:
          settings: of the runs; in a sweep, of the point.
          runs: records by seed.
          model: what is known of the model: parameters by group, layers that LoRA adapts.
        """
        ...


def check_updates(task: Task, model: AdaptedModel) -> None:
    """Raises ValueError if an update does not do what merging says it does; see `lora_jax.verify`."""
    found = model.verify(task.evaluation_batches[0], task.function)
    if found is not None:
        found.check()


def check_rows(task: Task) -> None:
    """Raises InputError if rows are too short for an example; tokenises only if they could be."""
    if 0 < (task.settings.row_length or 0) < task.max_length and task.settings.train.epochs:
        training_batches(task, task.settings, task.settings.seeds[:1])


def check_method(task: Task, method: Method) -> None:
    """Raises InputError if a method does not fit the model; no weight is read."""
    model = task.shapes()
    nnx.eval_shape(lambda: method.insert(model, jax.random.key(0)))


def training_batches(task: Task, settings: RunSettings, seeds: Sequence[int]) -> TrainingBatches:
    """The batches of a run, or of several whose arrays have a first axis of runs.

    Runs whose examples come in one order have the same batches: no axis.

    Args:
      task: whose training examples these are.
      settings: of the run; of several, of the first of them.
      seeds: of every run's order, see `RunSettings.order`.
    """
    assert task.train is not None
    row_length = 0 if settings.row_length is None else settings.row_length or task.max_length
    if len(set(seeds)) == 1:
        return TrainingBatches(
            task.train, batch_size=settings.batch_size, epochs=settings.train.epochs,
            seed=seeds[0], hidden_size=task.width, max_length=task.max_length,
            parts=shares(task.mesh), row_length=row_length,
        )  # fmt: skip
    return BatchesOfRuns(
        task.train, batch_size=settings.batch_size, epochs=settings.train.epochs, seeds=seeds,
        hidden_size=task.width, row_length=row_length or task.max_length, parts=shares(task.mesh),
    )  # fmt: skip
