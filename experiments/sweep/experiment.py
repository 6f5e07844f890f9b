"""The experiments whose runs a sweep can vary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from experiments import glue
from experiments.runs.classification import ClassificationTask
from experiments.runs.data_to_text import DataToTextTask
from experiments.runs.task import Task
from experiments.runs.tune import TuneTask
from lora_jax import methods
from lora_jax.data import glue_tasks
from lora_jax.errors import InputError
from lora_jax.method import Method
from lora_jax.metrics import glue as glue_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a sweep needs to know of an experiment before data are read.

    Attributes:
      task: of a config.
      head: regular expression for the paths of the task head's leaves, if there is one.
      headline: of a config, the metric that chooses a run's best epoch.
      smaller_is_better: whether a smaller headline is the better one.
    """

    task: Callable[[ConfigDict], Task]
    head: str | None
    headline: Callable[[ConfigDict], str]
    smaller_is_better: bool

    def method(self, config: ConfigDict) -> Method:
        """The method of a config.

        Raises:
          ValueError, TypeError: an unknown method, or a bad argument.
        """
        return methods.create(head=self.head, **config.method.to_dict())


EXPERIMENTS: Mapping[str, Experiment] = {
    "glue": Experiment(
        task=glue.task,
        head=ClassificationTask.head,
        headline=lambda config: glue_metrics.headline(glue_tasks.task(config.task)),
        smaller_is_better=ClassificationTask.smaller_is_better,
    ),
    "nlg": Experiment(
        task=DataToTextTask,
        head=DataToTextTask.head,
        headline=lambda config: DataToTextTask.headline,
        smaller_is_better=DataToTextTask.smaller_is_better,
    ),
    "tune": Experiment(
        task=TuneTask,
        head=TuneTask.head,
        headline=lambda config: TuneTask.headline,
        smaller_is_better=TuneTask.smaller_is_better,
    ),
}


def experiment(name: str) -> Experiment:
    """The experiment of this name; ValueError names the known ones."""
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}; known are {sorted(EXPERIMENTS)}")
    return EXPERIMENTS[name]
