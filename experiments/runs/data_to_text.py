"""Data to text with GPT-2: the task from tokenised texts to scores of what the model writes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.runs import fields, folder
from experiments.runs.decoding import Decoding
from experiments.runs.language import Validation, end_tokens
from experiments.runs.origins import given, origin
from experiments.runs.record import by_seed, chosen_adapter, training_record
from experiments.runs.settings import RunSettings, mesh_for, model_arguments, run_settings
from experiments.runs.task import Trained
from lora_jax import digests, methods
from lora_jax.data import completions, data_to_text, tokenizers
from lora_jax.data.batch import Batch
from lora_jax.data.pairs import Pairs, by_context
from lora_jax.data.special_tokens import in_pairs, in_prompts, special_ids
from lora_jax.decoding.beam import BeamSearch
from lora_jax.inputs import SUBSETS
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params
from lora_jax.sharding.placement import in_host_memory
from lora_jax.training import step
from lora_jax.training.records import environment, peak_memory, spread


class DataToTextTask:
    """The `Task` of a corpus: texts and tokens, the decoder's configuration, the method."""

    head = None
    headline = "loss"
    smaller_is_better = True
    function = staticmethod(Validation.function)

    def __init__(self, config: ConfigDict):
        """Reads the texts, once everything that is quicker to check has proved good.

        Raises:
          FileNotFoundError, ValueError: bad settings, no model, or no data.
        """
        fields.check_run(config)
        data = config.data
        self.settings = run_settings(config)
        self.method = methods.create(**config.method.to_dict())
        self._folder = hub.find(config.model.name)
        self._decoder = hub.read_decoder_config(self._folder, **model_arguments(config))
        self.width = self._decoder.n_embd
        self.mesh = mesh_for(config, self._decoder.heads)
        self.name, self.loss = config.dataset, step.completion_loss(config.label_smoothing)
        self._source: str = data.source
        self._special = special_ids(self.method.special_tokens, self._decoder.vocab_size)
        self.max_length = min(data.max_length + self._special.count, self._decoder.max_length)
        unused = hub.unused_heads(hub.check(self._folder, self._decoder))
        self.notes: dict[str, str] = {"model": unused} if unused else {}
        self.tokenizer = tokenizers.load_tokenizer(
            self._folder, tokenizers.DECODER, self._decoder.vocab_size
        )
        settings = {k: v for k, v in config.decode.items() if k != "batch_size"}
        self._search, self._config = BeamSearch(end_tokens(self.tokenizer), **settings), config
        self._pairs: dict[str, Pairs] = {}  # for training, by split
        if config.epochs and not config.eval_only:
            limits = {"train": data.max_examples, "valid": data.max_eval_examples}
            self._pairs = {split: self._read(split).take(n) for split, n in limits.items()}
        self.split: str = data.decode_split
        self._test = by_context(self._read(self.split)).take(data.max_prompts)
        self.base = origin(self._decoder, self.tokenizer)
        adapters, notes = given(self.settings, self.name, self.base)
        self.notes.update(notes)
        references = [text for texts in self._test.references for text in ("\n", *texts)]
        subsets = self._test.subsets  # of which each has scores of its own
        self.inputs = {
            "model": hub.digest(self._folder),
            "tokenizer": tokenizers.digest(self._folder),
            **{
                f"{split} data": digests.of_texts([*pairs.contexts, *pairs.completions])
                for split, pairs in self._pairs.items()
            },
            "decoded data": digests.of_texts([*self._test.contexts, *references]),
            **({SUBSETS: digests.of_texts(subsets)} if any(subsets) else {}),
            **adapters,
        }

    # What follows is made when it is first asked for: a run that is only read back needs none of it.

    @functools.cached_property
    def train(self) -> completions.TokenisedPairs | None:
        """The training rows as tokens; None where the task only decodes."""
        return self._tokenised("train") if self._pairs else None

    @functools.cached_property
    def _validation(self) -> Validation:
        return Validation(
            self._tokenised("valid"), width=self.width, max_length=self.max_length, mesh=self.mesh
        )

    @functools.cached_property
    def evaluation_batches(self) -> Sequence[Batch]:
        """All validation rows; none where the task only decodes."""
        return self._validation.batches if self._pairs else ()

    @functools.cached_property
    def decoding(self) -> Decoding:
        """What follows training."""
        room = self.max_length - self._search.max_tokens - self._special.count
        prompts = completions.prompts(self._test, self.tokenizer, room)
        return Decoding(
            self._config, self.tokenizer, self._search, self._test,
            in_prompts(prompts, self._special),
        )  # fmt: skip

    def _read(self, split: str) -> Pairs:
        pairs = data_to_text.read(self.name, split, self._source)
        texts = [*dict.fromkeys(pairs.contexts), *pairs.completions]
        tokenizers.check_texts(texts, self.tokenizer, f"{self.name} {split}")
        if pairs.notes:
            self.notes[split] = pairs.notes
        return pairs

    def _tokenised(self, split: str) -> completions.TokenisedPairs:
        room = self.max_length - self._special.count
        pairs = completions.tokenise_pairs(self._pairs[split], self.tokenizer, room)
        return in_pairs(pairs, self._special)

    def prepare(self) -> None:
        """Makes all that is not made yet, see `Task.prepare`."""
        _ = self.train, self.evaluation_batches, self.decoding

    def model(self, seed: int) -> tuple[Decoder, jax.Array]:
        """The pre-trained model, and the key for what a method inserts in a run."""
        with in_host_memory():
            return hub.load_decoder(self._folder, self._decoder), jax.random.key(seed)

    def start(self, seed: int) -> tuple[Params, jax.Array]:
        """The same without the pre-trained part: nothing besides the key."""
        return {}, jax.random.key(seed)

    def metrics(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        """The validation loss of one run."""
        return self._validation.metrics(outputs)

    def finish(self, trained: Callable[[], Trained]) -> dict[str, Any]:
        """Decodes the test set and scores the texts."""
        return self.decoding.record(trained())

    def record(
        self,
        settings: RunSettings,
        runs: Mapping[int, Mapping[str, Any]],
        model: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The run record of all seeds, see `Task.record`."""
        epochs = settings.train.epochs
        scores = {
            "task": self.name,
            "method": self.method.name if epochs or settings.train.init_adapter else "none",
            "model": settings.model,
            "warm_start": settings.train.init_adapter or None,
            "headline": self.headline,
            "split": self.split,
            **scores_record(list(runs.values()), self.notes),
            "inputs": dict(self.inputs),
            "seeds": by_seed(runs),
            "config": folder.plain(settings.config),
        }
        if not epochs:
            return {**scores, "memory": peak_memory(), **environment(), **model}
        chosen = chosen_adapter(runs, self.headline, smaller=True)
        trained = training_record(list(runs.values()), self.headline)
        return {**scores, "adapter": chosen, **trained, **model}


def scores_record(records: Sequence[Mapping[str, Any]], notes: Mapping[str, str]) -> dict[str, Any]:
    """The test scores of all seeds; a metric that one of them lacks is missing.

    A seed that diverged was not decoded: its scores are NaN.

    Args:
      records: of every seed.
      notes: on the data, by split.
    """
    decoded = [record for record in records if "test" in record]
    first = decoded[0]["test"] if decoded else {}
    names = [name for name in first if all(name in r["test"] for r in decoded)]
    none: Mapping[str, float] = {}
    return {
        "test": {
            name: spread([r.get("test", none).get(name, math.nan) for r in records])
            for name in names
        },
        "missing": {name: why for record in decoded for name, why in record["missing"].items()},
        "notes": dict(notes)
        | {name: note for record in decoded for name, note in record["metric_notes"].items()},
    }
