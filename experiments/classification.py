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

from experiments import workdir as workdirs
from experiments.adaptation import (
    Adaptation,
    Goal,
    best_seed,
    mesh_for,
    model_settings,
    training_record,
)
from lora_jax import methods
from lora_jax.data import batches
from lora_jax.data.glue import Examples
from lora_jax.data.special_tokens import in_examples, special_ids
from lora_jax.models import hub
from lora_jax.partition import Params
from lora_jax.sharding import hosts
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import in_host_memory
from lora_jax.training import loop, step
from lora_jax.training.records import write_json

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
    """What all seeds share: tokenised data, encoder configuration, method."""

    def __init__(self, config: ConfigDict, read: Callable[[], Problem]):
        self.config = config
        self.method = methods.create(head=hub.HEAD, **config.method.to_dict())
        self.folder = hub.find(config.model.name)  # before the data, which may be a long download
        self.encoder = hub.read_config(self.folder, **model_settings(config))
        self.mesh = mesh_for(config, self.encoder.heads)
        problem = self.problem = read()
        special = special_ids(self.method.special, self.encoder.vocab_size)
        room = min(config.data.max_length, self.encoder.max_length - special.count)
        self.max_length = room + special.count
        tokenizer = AutoTokenizer.from_pretrained(str(self.folder))

        def tokens(examples: Examples) -> batches.TokenisedExamples:
            return in_examples(batches.tokenise(examples, tokenizer, room), special)

        self.train = None if problem.train is None else tokens(problem.train)
        self.evaluations = {split: tokens(e) for split, e in problem.evaluations.items()}
        self.packed = {  # once, for all seeds and epochs
            split: batches.evaluation_batches(
                data, self.encoder.hidden_size, self.max_length, parts=shares(self.mesh)
            )
            for split, data in self.evaluations.items()
        }
        self.counts: dict[str, int] = {}


class Run:
    """One seed of a preparation."""

    def __init__(self, preparation: Preparation, seed: int, folder: Path | None):
        self.preparation = preparation
        self.folder = folder
        self.seed = seed
        keys = jax.random.split(jax.random.key(seed), 3)
        with in_host_memory():
            model = hub.load_classifier(
                preparation.folder, preparation.encoder, preparation.problem.num_outputs, keys[0]
            )
        config, method = preparation.config, preparation.method
        self.adaptation = Adaptation(config, model, method, keys[1], preparation.mesh, hub.HEAD)
        preparation.counts = self.adaptation.summary.counts()
        adaptation = self.adaptation
        self.predict = step.make_predict_step(adaptation.structure, placement=adaptation.placement)

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """Checks and builds all that training needs; the result trains this seed, or resumes it."""
        config, own = self.preparation.config, self.preparation
        assert self.folder is not None and own.train is not None
        data = batches.TrainingBatches(
            own.train, config.batch_size, config.epochs, self.seed, own.encoder.hidden_size,
            own.max_length, shares(own.mesh),
        )  # fmt: skip
        loss = step.regression_loss if own.problem.regression else step.classification_loss
        label = f"{own.problem.name} {own.method.name} seed {self.seed}"
        goal = Goal(label, own.problem.headline, self.evaluate, self.save_adapter)
        return self.adaptation.prepare(config, data, loss, goal, self.seed, self.folder)

    def evaluate(self, trainable: Params) -> dict[str, float]:
        """Scores on the dev splits."""
        return self.score(self.outputs(trainable))

    def score(self, outputs: Outputs) -> dict[str, float]:
        """Scores of logits by split, as `outputs` gives them."""
        labels = {split: data.labels for split, data in self.preparation.evaluations.items()}
        return self.preparation.problem.score(outputs, labels)

    def outputs(self, trainable: Params) -> dict[str, np.ndarray]:
        """Logits (examples, outputs) of every dev split, in the order of the data."""
        own, result = self.preparation, {}
        for split, data in own.evaluations.items():
            collected = np.zeros((len(data), own.problem.num_outputs), np.float32)
            for indices, batch in own.packed[split]:
                placed = self.adaptation.placement.batch(batch)
                logits = self.predict(trainable, self.adaptation.frozen, placed)
                collected[indices] = np.asarray(logits)[: len(indices)]
            result[split] = collected
        return result

    def save_adapter(self, trainable: Params, progress: loop.Progress) -> None:
        """Writes this seed's adapter folder."""
        assert self.folder is not None
        own = self.preparation
        notes = {
            "task": own.problem.name, "model": own.config.model.name, "seed": self.seed,
            "epoch": progress.best, "metrics": progress.history[progress.best - 1],
        }  # fmt: skip
        self.adaptation.save(self.folder / "adapter", trainable, notes)


def train_all(config: ConfigDict, problem: Callable[[], Problem], workdir: Path) -> dict[str, Any]:
    """Trains all seeds of a config and writes the run record `result.json`; returns it.

    A finished run is read back, an unfinished one is resumed.
    """
    if (record := workdirs.finished(workdir, config)) is not None:
        return record
    with hosts.together():
        preparation = Preparation(config, problem)
    runs: dict[int, dict[str, Any]] = {}
    for seed in config.seeds:
        run = Run(preparation, seed, workdir / f"seed_{seed}")
        train = run.prepare()
        if not runs:
            workdirs.claim(workdir, config)
            workdirs.say(run.adaptation.summary)
        runs[seed] = train()
    result = _record(preparation, runs)
    chosen = workdir / f"seed_{result['adapter']['seed']}" / "adapter"
    workdirs.copy_folder(chosen, workdir / "adapter")
    write_json(workdir / "result.json", result)
    return result


def _record(preparation: Preparation, runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    config, headline = preparation.config, preparation.problem.headline
    best = best_seed(runs, headline)
    return {
        "task": preparation.problem.name,
        "method": preparation.method.name,
        "model": config.model.name,
        "headline": headline,
        "parameters": preparation.counts,
        "warm_start": config.init_adapter or None,
        "adapter": {"seed": best, "epoch": runs[best]["best_epoch"]},
        **training_record(list(runs.values())),
        "seeds": {str(seed): record for seed, record in runs.items()},
        "config": workdirs.plain(config),
    }
