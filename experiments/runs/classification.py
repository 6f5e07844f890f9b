"""Runs of sentence classification or regression: a problem, a config, and one run per seed.

`experiments.glue` and `experiments.quickstart` differ in the problem only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from experiments.runs import command_line, folder
from experiments.runs.adaptation import (
    Adaptation,
    Goal,
    Predict,
    adapter_notes,
    mesh_for,
    model_settings,
    order_seed,
    training_batches,
)
from experiments.runs.record import best_seed, training_record
from lora_jax import files, methods
from lora_jax.data import batches
from lora_jax.data.glue import Examples
from lora_jax.data.special_tokens import in_examples, special_ids
from lora_jax.files import write_json
from lora_jax.models import hub
from lora_jax.models.encoder import Classifier
from lora_jax.partition import Params
from lora_jax.sharding import hosts
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import in_host_memory
from lora_jax.training import loop, step

Outputs = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is learned and how it is scored.

    Attributes:
      name: for records.
      num_outputs: classes, or 1 for regression.
      regression: squared error instead of cross-entropy.
      headline: the score that chooses the best epoch.
      train: training examples (None where a run only evaluates).
      evaluations: dev examples by split.
      score: (outputs by split, labels by split) -> scores.
    """

    name: str
    num_outputs: int
    regression: bool
    headline: str
    train: Examples | None
    evaluations: Mapping[str, Examples]
    score: Callable[[Outputs, Outputs], dict[str, float]]


class Preparation:
    """What all runs of a config share: tokenised data, encoder configuration, method."""

    head = hub.HEAD
    smaller_is_better = False
    function = None  # of (model, batch), which is evaluated: its outputs

    def __init__(self, config: ConfigDict, read: Callable[[], Problem]):
        self.config = config
        self.method = methods.create(head=hub.HEAD, **config.method.to_dict())
        self.folder = hub.find(config.model.name)  # before the data, which may be a long download
        self.encoder = hub.read_config(self.folder, **model_settings(config))
        self.width = self.encoder.hidden_size
        self.mesh = mesh_for(config, self.encoder.heads)
        problem = self.problem = read()
        self.task, self.headline = problem.name, problem.headline
        self.loss = step.regression_loss if problem.regression else step.classification_loss
        special = special_ids(self.method.special_tokens, self.encoder.vocab_size)
        room = min(config.data.max_length, self.encoder.max_length - special.count)
        self.max_length = room + special.count
        tokenizer = AutoTokenizer.from_pretrained(str(self.folder))

        def tokens(examples: Examples) -> batches.TokenisedExamples:
            return in_examples(batches.tokenise(examples, tokenizer, room), special)

        self.train = None if problem.train is None else tokens(problem.train)
        self.evaluations = {split: tokens(e) for split, e in problem.evaluations.items()}
        self.packed = {  # once, for all runs and epochs
            split: batches.evaluation_batches(
                data, self.width, self.max_length, parts=shares(self.mesh)
            )
            for split, data in self.evaluations.items()
        }

    def model(self, seed: int) -> tuple[Classifier, jax.Array]:
        """The pre-trained model with a run's new head, and the key for what a method inserts."""
        keys = _keys(seed)
        with in_host_memory():
            model = hub.load_classifier(
                self.folder, self.encoder, self.problem.num_outputs, keys[0]
            )
        return model, keys[1]

    def start(self, seed: int) -> tuple[Params, jax.Array]:
        """The same without the pre-trained part: the head's leaves alone."""
        keys = _keys(seed)
        with in_host_memory():
            return hub.new_head(self.encoder, self.problem.num_outputs, keys[0]), keys[1]

    def outputs(self, predict: Predict) -> dict[str, np.ndarray]:
        """Logits (runs, examples, outputs) of every dev split, in the order of the data."""
        result = {}
        for split, data in self.evaluations.items():
            parts = [(indices, predict(batch)) for indices, batch in self.packed[split]]
            shape = (len(parts[0][1]), len(data), self.problem.num_outputs)
            result[split] = np.zeros(shape, np.float32)
            for indices, logits in parts:
                result[split][:, indices] = logits[:, : len(indices)]
        return result

    def score(self, outputs: Outputs) -> dict[str, float]:
        """Scores of one run's logits by split."""
        labels = {split: data.labels for split, data in self.evaluations.items()}
        return self.problem.score(outputs, labels)

    def metrics(self, predict: Predict) -> list[dict[str, float]]:
        """Scores of every run on the dev splits."""
        outputs = self.outputs(predict)
        runs = len(next(iter(outputs.values())))
        return [self.score({split: own[i] for split, own in outputs.items()}) for i in range(runs)]

    def label(self, seed: int) -> str:
        """A run's name at the progress bar."""
        return f"{self.task} {self.method.name} seed {seed}"

    def record(
        self, config: ConfigDict, runs: Mapping[int, dict[str, Any]], counts: Mapping[str, int]
    ) -> dict[str, Any]:
        """The run record of all seeds of a config."""
        best = best_seed(runs, self.headline)
        return {
            "task": self.task,
            "method": self.method.name,
            "model": config.model.name,
            "headline": self.headline,
            "parameters": dict(counts),
            "warm_start": config.init_adapter or None,
            "adapter": {"seed": best, "epoch": runs[best]["best_epoch"]},
            **training_record(list(runs.values())),
            "seeds": {str(seed): record for seed, record in runs.items()},
            "config": folder.plain(config),
        }


def _keys(seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), 3)


class Run:
    """One seed of a preparation."""

    def __init__(self, preparation: Preparation, seed: int, folder: Path | None):
        self.preparation = preparation
        self.folder = folder
        self.seed = seed
        model, key = preparation.model(seed)
        config, method = preparation.config, preparation.method
        self.adaptation = Adaptation(config, model, method, key, preparation.mesh, hub.HEAD)
        self.predict = self.adaptation.predictor()

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """Checks and builds all that training needs; the result trains this seed, or resumes it."""
        config, own = self.preparation.config, self.preparation
        assert self.folder is not None and own.train is not None
        order = order_seed(config, self.seed)
        data = training_batches(config, own.train, [order], own.width, own.max_length, own.mesh)
        goal = Goal(
            own.label(self.seed), own.headline,
            lambda trainable: own.metrics(self.predict(trainable))[0], self.save_adapter,
        )  # fmt: skip
        return self.adaptation.prepare(config, data, own.loss, goal, self.seed, self.folder)

    def outputs(self, trainable: Params) -> dict[str, np.ndarray]:
        """Logits (examples, outputs) of every dev split, in the order of the data."""
        found = self.preparation.outputs(self.predict(trainable))
        return {split: own[0] for split, own in found.items()}

    def save_adapter(self, trainable: Params, progress: loop.Progress) -> None:
        """Writes this seed's adapter folder."""
        assert self.folder is not None
        own = self.preparation
        notes = adapter_notes(own.config, own.task, self.seed, progress)
        self.adaptation.save(self.folder / "adapter", trainable, notes)


def train_all(config: ConfigDict, problem: Callable[[], Problem], workdir: Path) -> dict[str, Any]:
    """Trains all seeds of a config and writes the run record `result.json`; returns it.

    A finished run is read back, an unfinished one is resumed.
    """
    if (record := folder.finished(workdir, config)) is not None:
        return record
    with hosts.together():
        preparation = Preparation(config, problem)
    runs: dict[int, dict[str, Any]] = {}
    for seed in config.seeds:
        run = Run(preparation, seed, workdir / f"seed_{seed}")
        train = run.prepare()
        if not runs:
            folder.claim(workdir, config)
            command_line.say(run.adaptation.summary)
        runs[seed] = train()
    result = preparation.record(config, runs, run.adaptation.summary.counts())
    chosen = workdir / f"seed_{result['adapter']['seed']}" / "adapter"
    files.replace_folder(chosen, workdir / "adapter")
    write_json(workdir / "result.json", result)
    return result
