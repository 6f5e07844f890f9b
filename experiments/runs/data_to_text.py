"""Data-to-text with GPT-2: what all runs of a config share, from tokenised texts to scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from lora_jax.low_rank.merge import merge
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from experiments.runs.adaptation import Predict, mesh_for, model_settings
from experiments.runs.data_to_text_record import record_of
from experiments.runs.language import Validation, end_tokens
from lora_jax import methods, partition
from lora_jax.data import completions, data_to_text
from lora_jax.data.special_tokens import in_pairs, in_prompts, special_ids
from lora_jax.decoding.beam import BeamSearch, Continuations, beam_search
from lora_jax.decoding.predictions import Predictions, decode_all
from lora_jax.low_rank import layers
from lora_jax.metrics import files, generation
from lora_jax.metrics.generation import Scores
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params
from lora_jax.sharding.hosts import from_main
from lora_jax.sharding.placement import Placement, in_host_memory
from lora_jax.training import step


class Preparation:
    """What all runs of a config share: texts and tokens, the decoder's configuration, the method."""

    head = None
    headline = "loss"
    smaller_is_better = True
    function = staticmethod(Validation.function)  # of (model, batch), which is evaluated

    def __init__(self, config: ConfigDict):
        data = config.data
        self.config = config
        self.method = methods.create(**config.method.to_dict())
        self.folder = hub.find(config.model.name)
        self.decoder = hub.read_decoder_config(self.folder, **model_settings(config))
        self.width = self.decoder.n_embd
        self.mesh = mesh_for(config, self.decoder.heads)
        self.task, self.loss = config.dataset, step.completion_loss(config.label_smoothing)
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
        self.train = self._validation = None
        if config.epochs and not config.eval_only:
            self.train = self._tokenised("train", data.max_examples)
            self._validation = Validation(
                self._tokenised("valid", data.max_eval_examples), self.width, self.max_length,
                self.mesh,
            )  # fmt: skip
        self.test = data_to_text.grouped(self._read(data.decode_split)).take(data.max_prompts)
        room = self.max_length - self.search.max_tokens - self.special.count
        prompts = completions.prompts(self.test, self.tokenizer, room)
        self.prompts = in_prompts(prompts, self.special)
        self._searches: dict[partition.Structure, Any] = {}

    def model(self, seed: int) -> tuple[Decoder, jax.Array]:
        """The pre-trained model, and the key for what a method inserts in a run."""
        with in_host_memory():
            return hub.load_decoder(self.folder, self.decoder), jax.random.key(seed)

    def start(self, seed: int) -> tuple[Params, jax.Array]:
        """The same without the pre-trained part: nothing besides the key."""
        return {}, jax.random.key(seed)

    def metrics(self, predict: Predict) -> list[dict[str, float]]:
        """The validation loss of every run."""
        assert self._validation is not None
        return self._validation.metrics(predict)

    def label(self, seed: int) -> str:
        """A run's name at the progress bar."""
        return f"{self.task} {self.method.name} seed {seed}"

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

    def decode(
        self, model: nnx.Module, placement: Placement, weights: Mapping[str, str], folder: Path,
        name: str,
    ) -> tuple[Predictions, list[str]]:  # fmt: skip
        """Decodes the test set; writes predictions.txt and references.txt.

        Args:
          model: adapted; updates are merged first.
          placement: of the devices.
          weights: fingerprints of the base and of what was trained.
          folder: of the run; a decoding that was stopped goes on from what lies there.
          name: of the run, at the progress bar.
        """
        settings = self.config.decode
        model = merge(model) if layers.adapted_layers(model) else model
        all_frozen = dict.fromkeys(partition.parameters(model), partition.FROZEN)
        structure, _, params = partition.split(model, all_frozen)
        search = self._search(structure, placement)
        depends_on = {
            **settings.to_dict(),
            "dataset": self.config.dataset,
            "split": self.config.data.decode_split,
            **weights,
        }
        found = decode_all(
            placement.by_rows(partial(search, params)), self.prompts, settings.batch_size,
            folder / "predictions.jsonl", depends_on, f"decode {name}",
        )  # fmt: skip
        ends = self.search.end_tokens
        kept = [ids[:-1] if ids and ids[-1] in ends else ids for ids in found.tokens]
        texts = [completions.clean(text) for text in self.tokenizer.batch_decode(kept)]
        files.write_hypotheses(folder / "predictions.txt", texts)
        files.write_references(folder / "references.txt", self.test.references)
        return found, texts

    def finish(
        self, model: nnx.Module, placement: Placement, weights: Mapping[str, str], folder: Path,
        name: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Decodes, and scores the texts: what the run record says of it. Arguments as `decode`'s."""
        found, texts = self.decode(model, placement, weights, folder, name)
        scores = Scores(**from_main(lambda: dataclasses.asdict(self.score(texts))))
        return {
            "test": scores.values, "missing": scores.missing, "metric_notes": scores.notes,
            "decode": found.speed(),
        }  # fmt: skip

    def _search(self, structure: partition.Structure, placement: Placement) -> Any:
        """The compiled search; runs whose models are alike once merged share it."""

        def continued(params: Params, tokens: jax.Array, lengths: jax.Array) -> Continuations:
            model = partition.join(structure, {}, params)
            assert isinstance(model, Decoder)
            return beam_search(model, tokens, lengths, self.search)

        if structure not in self._searches:
            self._searches[structure] = placement.jit(continued, out_shardings=placement.replicated)
        return self._searches[structure]

    def record(
        self, config: ConfigDict, runs: Mapping[int, dict[str, Any]], counts: Mapping[str, int]
    ) -> dict[str, Any]:
        """The run record of all seeds of a config."""
        record = record_of(config, self.method.name, self.notes, runs)
        return record | {"parameters": dict(counts)}
