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

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from transformers import AutoTokenizer

from experiments import workdir as workdirs
from experiments.adaptation import Adaptation, Goal, mesh_for, model_settings
from experiments.language import end_tokens, validation
from experiments.nlg_record import record_of, table
from experiments.score import as_in_paper
from lora_jax import adapters, layers, methods, partition
from lora_jax.data import completions, data_to_text
from lora_jax.data.batches import TrainingBatches
from lora_jax.data.special_tokens import in_pairs, in_prompts, special_ids
from lora_jax.decoding.beam import BeamSearch, Continuations, beam_search
from lora_jax.decoding.predictions import Predictions, decode_all
from lora_jax.merge import merge
from lora_jax.metrics import files, generation
from lora_jax.metrics.generation import Scores
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params
from lora_jax.sharding.hosts import from_main, together
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import in_host_memory
from lora_jax.training import loop, step
from lora_jax.training.records import write_json


class Preparation:
    """What all seeds share: texts and tokens, the decoder's configuration, the method."""

    def __init__(self, config: ConfigDict):
        data = config.data
        self.config = config
        self.method = methods.create(**config.method.to_dict())
        self.folder = hub.find(config.model.name)
        self.decoder = hub.read_decoder_config(self.folder, **model_settings(config))
        self.mesh = mesh_for(config, self.decoder.heads)
        self.special = special_ids(self.method.special, self.decoder.vocab_size)
        self.max_length = min(data.max_length + self.special.count, self.decoder.max_length)
        self.tokenizer = AutoTokenizer.from_pretrained(str(self.folder))
        self.search = BeamSearch(
            end_tokens(self.tokenizer),
            **{k: v for k, v in config.decode.items() if k != "batch_size"},
        )
        if len(self.tokenizer) > self.decoder.vocab_size:
            raise ValueError(
                f"the tokenizer in {self.folder} has {len(self.tokenizer)} tokens, the model "
                f"{self.decoder.vocab_size}: they do not belong together"
            )
        self.notes: dict[str, str] = {}
        self.train = self.valid = None
        if config.epochs and not config.eval_only:
            self.train = self._tokenised("train", data.max_examples)
            self.valid = self._tokenised("valid", data.max_eval_examples)
        self.test = data_to_text.grouped(self._read(data.decode_split)).take(data.max_prompts)
        room = self.max_length - self.search.max_tokens - self.special.count
        prompts = completions.prompts(self.test, self.tokenizer, room)
        self.prompts = in_prompts(prompts, self.special)

    def _read(self, split: str) -> data_to_text.Pairs:
        pairs = data_to_text.read(self.config.dataset, split, self.config.data.source)
        if pairs.notes:
            self.notes[split] = pairs.notes
        return pairs

    def _tokenised(self, split: str, limit: int) -> completions.TokenisedPairs:
        room = self.max_length - self.special.count
        pairs = self._read(split).take(limit)
        return in_pairs(completions.tokenise_pairs(pairs, self.tokenizer, room), self.special)

    def score(self, texts: list[str]) -> Scores:
        """Scores of the decoded texts, one per different input."""
        if self.config.dataset == "e2e":
            return generation.e2e(texts, self.test.references)
        scores = generation.webnlg(texts, self.test.references)
        values, missing = dict(scores.values), dict(scores.missing)
        subsets = sorted(set(self.test.subsets))
        for subset in subsets if len(subsets) > 1 else []:
            chosen = [i for i, own in enumerate(self.test.subsets) if own == subset]
            part = generation.webnlg(
                [texts[i] for i in chosen], [self.test.references[i] for i in chosen]
            )
            values |= {f"{name}_{subset}": value for name, value in part.values.items()}
            missing |= {f"{name}_{subset}": why for name, why in part.missing.items()}
        return Scores(values, missing, scores.notes)


class Run:
    """One seed: training, decoding and scoring."""

    def __init__(self, preparation: Preparation, seed: int, folder: Path):
        self.own = preparation
        self.seed = seed
        self.folder = folder
        with in_host_memory():
            model = hub.load_decoder(preparation.folder, preparation.decoder)
        self.adaptation = Adaptation(
            preparation.config, model, preparation.method, jax.random.key(seed), preparation.mesh
        )

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """Checks and builds all that training needs; the result trains this seed, or resumes it."""
        own, config = self.own, self.own.config
        assert own.train is not None and own.valid is not None
        width = own.decoder.n_embd
        data = TrainingBatches(
            own.train, config.batch_size, config.epochs, self.seed, width, own.max_length,
            shares(own.mesh),
        )  # fmt: skip
        goal = Goal(
            f"{config.dataset} {own.method.name} seed {self.seed}",
            "loss",
            validation(self.adaptation, own.valid, width, own.max_length),
            self.save_adapter,
            smaller_is_better=True,
        )
        loss = step.completion_loss(config.label_smoothing)
        return self.adaptation.prepare(config, data, loss, goal, self.seed, self.folder)

    def save_adapter(self, trainable: Params, progress: loop.Progress) -> None:
        """Writes this seed's adapter folder."""
        config = self.own.config
        notes = {
            "task": config.dataset, "model": config.model.name, "seed": self.seed,
            "epoch": progress.best, "metrics": progress.history[progress.best - 1],
        }  # fmt: skip
        self.adaptation.save(self.folder / "adapter", trainable, notes)

    def decode(self, trainable: Params) -> tuple[Predictions, list[str]]:
        """Decodes the test set with the merged model; writes predictions.txt and references.txt."""
        own, settings = self.own, self.own.config.decode
        model = partition.join(self.adaptation.structure, trainable, self.adaptation.frozen)
        model = merge(model) if layers.adapted_layers(model) else model
        all_frozen = dict.fromkeys(partition.parameters(model), partition.FROZEN)
        structure, _, params = partition.split(model, all_frozen)

        def continued(params: Params, tokens: jax.Array, lengths: jax.Array) -> Continuations:
            model = partition.join(structure, {}, params)
            assert isinstance(model, Decoder)
            return beam_search(model, tokens, lengths, own.search)

        placement = self.adaptation.placement
        search = placement.jit(continued, out_shardings=placement.replicated)

        depends_on = {
            **settings.to_dict(),
            "dataset": own.config.dataset,
            "split": own.config.data.decode_split,
            "base": self.adaptation.base,
            "weights": adapters.fingerprint(trainable, jnp.float32),
        }
        found = decode_all(
            placement.by_rows(partial(search, params)), own.prompts, settings.batch_size,
            self.folder / "predictions.jsonl", depends_on, f"decode seed {self.seed}",
        )  # fmt: skip
        ends = own.search.end_tokens
        kept = [ids[:-1] if ids and ids[-1] in ends else ids for ids in found.tokens]
        texts = [completions.clean(text) for text in own.tokenizer.batch_decode(kept)]
        files.write_hypotheses(self.folder / "predictions.txt", texts)
        files.write_references(self.folder / "references.txt", own.test.references)
        return found, texts

    def finish(self, trainable: Params) -> dict[str, Any]:
        """Decodes and scores."""
        found, texts = self.decode(trainable)
        scores = Scores(**from_main(lambda: dataclasses.asdict(self.own.score(texts))))
        return {
            "test": scores.values, "missing": scores.missing, "metric_notes": scores.notes,
            "decode": found.speed(),
        }  # fmt: skip


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
    if (record := workdirs.finished(workdir, config)) is not None:
        return record
    with together():
        preparation = Preparation(config)
    for split, note in preparation.notes.items():
        workdirs.say(f"{config.dataset} {split}: {note}")
    runs: dict[int, dict[str, Any]] = {}
    for seed in config.seeds:
        run = Run(preparation, seed, workdir / f"seed_{seed}")
        train = run.prepare() if config.epochs else None
        if not runs:
            workdirs.claim(workdir, config)
            workdirs.say(run.adaptation.summary)
            counts = run.adaptation.summary.counts()
        runs[seed] = train() if train else {}
        adaptation = run.adaptation
        trainable = (
            adaptation.load(run.folder) if train else adaptation.placement.put(adaptation.trainable)
        )
        runs[seed] |= run.finish(trainable)
    result = record_of(preparation.config, preparation.method.name, preparation.notes, runs) | {
        "parameters": counts
    }
    if config.epochs:
        chosen = workdir / f"seed_{result['adapter']['seed']}" / "adapter"
        workdirs.copy_folder(chosen, workdir / "adapter")
    write_json(workdir / "result.json", result)
    return result


def main(_: list[str]) -> None:
    """Command line."""
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell a lot at INFO
    config, folder = _CONFIG.value, _WORKDIR.value
    with workdirs.readable_errors():
        workdirs.join_hosts(_HOSTS.value)
        if not folder:
            raise ValueError(
                "--workdir=DIR is needed: the folder for texts, checkpoints and results"
            )
        if config.eval_only:
            result = evaluate(config, Path(folder))
            for name, value in result["test"].items():
                workdirs.say(f"{name:18s} {as_in_paper(name, value):>8s}   {value:.12g}")
            for name, why in result["missing"].items():
                workdirs.say(f"{name:18s} missing: {why}")
            return
        workdirs.say(table(run_all(config, Path(folder))))
        workdirs.say(f"record: {folder}/result.json   texts: {folder}/seed_*/predictions.txt")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = workdirs.hosts_flag()
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=workdirs.parse_flags)
