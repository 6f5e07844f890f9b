"""Data-to-text with GPT-2 and any method: the paper's Tables 3 (E2E), 13 (DART) and 14 (WebNLG).

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_lora.py:e2e --workdir=DIR \\
        --config.data.source=FOLDER

FOLDER holds the original files of the data sets. Every seed is trained, its best epoch (validation
loss) decodes the test set by beam search, and the texts are scored. The run record is
DIR/result.json; DIR/seed_S holds predictions.txt, references.txt (for experiments.score) and the
adapter. A run that was killed goes on with the same command. To decode and score an adapter:
`--config.eval_only=True --config.adapter=DIR`. `--config.epochs=0` scores the model unadapted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.paper.scores import as_in_paper
from experiments.runs import command_line, folder
from experiments.runs.adaptation import (
    Adaptation,
    Goal,
    adapter_notes,
    order_seed,
    training_batches,
)
from experiments.runs.data_to_text import Preparation
from experiments.runs.data_to_text_record import table
from lora_jax import adapters, files, partition
from lora_jax.decoding.predictions import Predictions
from lora_jax.files import write_json
from lora_jax.partition import Params
from lora_jax.sharding.hosts import together
from lora_jax.training import loop


class Run:
    """One seed: training, decoding and scoring."""

    def __init__(self, preparation: Preparation, seed: int, folder: Path):
        self.own = preparation
        self.seed = seed
        self.folder = folder
        model, key = preparation.model(seed)
        self.adaptation = Adaptation(
            preparation.config, model, preparation.method, key, preparation.mesh
        )

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """Checks and builds all that training needs; the result trains this seed, or resumes it."""
        own, config = self.own, self.own.config
        assert own.train is not None
        order = order_seed(config, self.seed)
        data = training_batches(config, own.train, [order], own.width, own.max_length, own.mesh)
        predict = self.adaptation.predictor(own.function)
        goal = Goal(
            own.label(self.seed), own.headline,
            lambda trainable: own.metrics(predict(trainable))[0], self.save_adapter,
            own.smaller_is_better,
        )  # fmt: skip
        return self.adaptation.prepare(config, data, own.loss, goal, self.seed, self.folder)

    def save_adapter(self, trainable: Params, progress: loop.Progress) -> None:
        """Writes this seed's adapter folder."""
        notes = adapter_notes(self.own.config, self.own.task, self.seed, progress)
        self.adaptation.save(self.folder / "adapter", trainable, notes)

    def decode(self, trainable: Params) -> tuple[Predictions, list[str]]:
        """The test set as the model with these parameters writes it."""
        return self.own.decode(*self._decoding(trainable))

    def finish(self, trainable: Params) -> dict[str, Any]:
        """Decodes and scores."""
        return self.own.finish(*self._decoding(trainable))

    def _decoding(self, trainable: Params) -> tuple[Any, ...]:
        own = self.adaptation
        model = partition.join(own.structure, trainable, own.frozen)
        weights = {"base": own.base, "weights": adapters.fingerprint(trainable, jnp.float32)}
        return model, own.placement, weights, self.folder, f"seed {self.seed}"


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Decodes and scores an adapter; writes evaluation.json and the texts."""
    run = Run(Preparation(config), config.seeds[0], workdir)
    result = run.finish(run.adaptation.load(Path(config.adapter)))
    write_json(workdir / "evaluation.json", {"adapter": config.adapter, **result})
    return result


def run_all(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, decodes and scores all seeds of a config; writes and returns the run record.

    A finished run is read back, an unfinished one is resumed.
    """
    if (record := folder.finished(workdir, config)) is not None:
        return record
    with together():
        preparation = Preparation(config)
    for split, note in preparation.notes.items():
        command_line.say(f"{config.dataset} {split}: {note}")
    runs: dict[int, dict[str, Any]] = {}
    for seed in config.seeds:
        run = Run(preparation, seed, workdir / f"seed_{seed}")
        train = run.prepare() if config.epochs else None
        if not runs:
            folder.claim(workdir, config)
            command_line.say(run.adaptation.summary)
            counts = run.adaptation.summary.counts()
        runs[seed] = train() if train else {}
        adaptation = run.adaptation
        trainable = (
            adaptation.load(run.folder) if train else adaptation.placement.put(adaptation.trainable)
        )
        runs[seed] |= run.finish(trainable)
    result = preparation.record(config, runs, counts)
    if config.epochs:
        chosen = workdir / f"seed_{result['adapter']['seed']}" / "adapter"
        files.replace_folder(chosen, workdir / "adapter")
    write_json(workdir / "result.json", result)
    return result


def main(_: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell a lot at INFO
    config, folder = _CONFIG.value, _WORKDIR.value
    with command_line.readable_errors():
        command_line.join_hosts(_HOSTS.value)
        if not folder:
            raise ValueError(
                "--workdir=DIR is needed: the folder for texts, checkpoints and results"
            )
        if config.eval_only:
            result = evaluate(config, Path(folder))
            for name, value in result["test"].items():
                command_line.say(f"{name:18s} {as_in_paper(name, value):>8s}   {value:.12g}")
            for name, why in result["missing"].items():
                command_line.say(f"{name:18s} missing: {why}")
            return
        command_line.say(table(run_all(config, Path(folder))))
        command_line.say(f"record: {folder}/result.json   texts: {folder}/seed_*/predictions.txt")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = command_line.hosts_flag()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse_flags)
