"""A trained classifier at work: base and adapter of a finished run, LoRA merged, answers for texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from configs import record as config_of_record
from experiments.runs.classification import ClassificationTask, Problem
from experiments.runs.record import check_record
from experiments.runs.run import loaded
from lora_jax import inputs, partition, run_files
from lora_jax.adapters import DESCRIPTION, load_adapter
from lora_jax.data.batch import Batch
from lora_jax.data.glue import Examples
from lora_jax.errors import MissingFileError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import merge
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.reading import Record, read_object
from lora_jax.run_folder import RESULT
from lora_jax.sharding.hosts import is_main
from lora_jax.training import step


def finished_run(folder: Path, model: str = "") -> tuple[ConfigDict, Record]:
    """Config, for evaluation, and record of a finished run.

    Args:
      folder: of the run.
      model: in place of the config's, where the same base lies elsewhere now.

    Raises:
      InputError: no run, an unfinished one, or damaged files.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder; name the --workdir of a finished run")
    if not (folder / RESULT).is_file() and (folder / DESCRIPTION).is_file():
        raise MissingFileError(
            f"{folder} is the folder of an adapter, not of a run: name the --workdir of a run. What was "
            "reduced or combined from it predicts as a model: python -m experiments.convert to_hugging_face "
            f"--adapter={folder} --output=DIR"
        )
    if not (folder / RESULT).is_file():
        raise MissingFileError(
            f"{folder / RESULT} is missing: the run is not finished. Give its command again, which goes on "
            "with it"
        )
    record = read_object(folder / RESULT)
    check_record(record.path, record.values)
    config = config_of_record.get_config(str(folder))
    run_files.check(folder, record.values, load_adapter)
    with config.unlocked():
        config.eval_only, config.adapter, config.verify = True, str(folder), False
        config.init_adapter, config.adapter_task = "", record.get("task", str)
    config.seeds = config.seeds[:1]
    if model:
        config.model.name = model
    return config, record


class Predictor:
    """Answers for texts, in packed batches as evaluation has them.

    Attributes:
      task: the run's, whose evaluation splits are to be predicted.
    """

    def __init__(
        self, config: ConfigDict, read: Callable[[], Problem], folder: Path, *, merged: bool = True
    ):
        """Loads base and adapter.

        Args:
          config: from `finished_run`.
          read: gives the problem, whose evaluation splits may be any texts, or none.
          folder: of the run.
          merged: whether LoRA is merged first; unmerged outputs are those of the run's evaluation to the
            last bit, merged ones to rounding, without LoRA's cost. A quantised base stays packed.

        Raises:
          InputError: base or tokenizer are not those that the run was made from.
        """
        self.task = ClassificationTask(config, read)
        self._check_inputs(folder)
        run, trainable = loaded(self.task, None)
        trainer = run.trainer
        model = trainer.model(trainable)
        if not (merged and adapted_layers(model)) or quantised_layers(model):
            self._predict = trainer.predictor(self.task.function)(trainable)
            return
        plain = merge(model)
        structure, params = partition.all_frozen(plain)
        predict = step.make_predict_step(structure, self.task.function, trainer.placement)
        self._predict = lambda batch: np.asarray(
            predict({}, params, trainer.placement.batch(batch))
        )

    def _check_inputs(self, folder: Path) -> None:
        """Raises InputError where base, tokenizer or a split that the run had are others now."""
        path = folder / inputs.FILE
        if not path.is_file():  # of an earlier version: the adapter's fingerprint is left
            return
        there: dict[str, Any] = read_object(path).values
        now = {name: value for name, value in self.task.inputs.items() if name in there}
        inputs.check(
            folder, {**there, **now}, "Give it what that run was made from (--model=FOLDER)"
        )

    def of_splits(self) -> dict[str, np.ndarray]:
        """Outputs (examples, outputs) of every evaluation split of the problem."""
        batches = self.task.evaluation_batches
        return self.task.logits(list(self._answers(batches)))

    def of_line(self, examples: Examples) -> np.ndarray:
        """Outputs of few examples at once, whose program is compiled for few lengths."""
        result = np.zeros((len(examples), self.task.problem.num_outputs), np.float32)
        for indices, batch in self.task.pack(examples, "input"):
            result[indices] = self._predict(batch)[: len(indices)]
        return result

    def _answers(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        for batch in tqdm(
            batches, desc="predict", unit="batch", mininterval=1, disable=not is_main()
        ):
            yield self._predict(batch)
