"""Tuning a decoder on a user's own texts: the task from files to validation loss, samples and answers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runs import tune_format
from experiments.runs.language import DecoderTask, Validation
from experiments.runs.settings import RunSettings
from experiments.runs.task import Trained
from experiments.runs.tune_answers import Answers
from experiments.runs.tune_data import Columns, Splits, read_splits
from lora_jax import digests
from lora_jax.data import conversations, tokenizers, tuning
from lora_jax.data.batch import Batch
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.conversations import Example
from lora_jax.data.end_tokens import end_tokens
from lora_jax.data.formats import Format
from lora_jax.data.special_tokens import in_pairs, in_prompts
from lora_jax.data.tuning import Counted
from lora_jax.decoding.beam import BeamSearch
from lora_jax.decoding.sampling import Sampling
from lora_jax.errors import InputError

NAME = "tune"


class TuneTask(DecoderTask):
    """The `Task` of a user's own examples.

    Attributes:
      splits: the examples.
      columns: where they are in their files; `columns.form` is the format.
    """

    def __init__(self, config: ConfigDict):
        """Reads the files, once everything that is quicker to check has proved good.

        Raises:
          FileNotFoundError, ValueError: bad settings, no model, or no data.
        """
        super().__init__(config, NAME)
        data = config.data
        self._config = config
        self.columns = Columns(data)
        self.splits: Splits = read_splits(data, self.columns)
        self.split = "test" if self.splits.test else "validation"
        form = self.columns.form
        self._template = tune_format.chat_template(form, self.tokenizer, data.chat_template)
        named = {"train": self.splits.train, "validation": self.splits.validation}
        named |= {"test": self.splits.test} if self.splits.test else {}
        for split, examples in named.items():
            texts = [message.content for e in examples for message in e.messages]
            tokenizers.check_texts(texts, self.tokenizer, f"{split} examples")
            self.inputs[f"{split} data"] = digests.of_texts(conversations.texts(examples))
        if self._template is not None:
            self.inputs["chat template"] = digests.of_texts([self._template.text])
        if self.splits.shared:
            text = f"{self.splits.shared:,} prompts are among the training examples too"
            self.notes["validation"] = text

    # What follows is made when it is first asked for: a run that is only read back needs none of it.

    @functools.cached_property
    def format(self) -> Format:
        """How conversations become tokens."""
        separator = self._config.data.separator
        ends = end_tokens(self._folder, self._decoder.vocab_size)
        return tune_format.make(self.columns.form, self.tokenizer, separator, self._template, ends)

    @functools.cached_property
    def _rows(self) -> Mapping[str, tuple[TokenisedPairs, Counted]]:
        data = self._config.data
        return {
            split: tuning.tokenise(
                examples, self.format, max_length=self.max_length - self._special.count,
                long=data.long, loss=data.loss,
            )
            for split, examples in (("train", self.splits.train), ("validation", self.splits.validation))
        }  # fmt: skip

    @functools.cached_property
    def train(self) -> TokenisedPairs | None:
        """The training rows as tokens; None where the task only decodes."""
        if not self.settings.train.epochs or self._config.eval_only:
            return None
        return in_pairs(self._rows["train"][0], self._special)

    @functools.cached_property
    def _validation(self) -> Validation:
        rows = in_pairs(self._rows["validation"][0], self._special)
        return Validation(rows, width=self.width, max_length=self.max_length, mesh=self.mesh)

    @property
    def evaluation_batches(self) -> Sequence[Batch]:
        """All validation rows."""
        return self._validation.batches

    @functools.cached_property
    def search(self) -> BeamSearch | Sampling:
        """How test prompts are decoded."""
        given, ends = self._config.decode, self.format.ends
        shared = {"max_tokens": given.max_tokens, "no_repeat_ngram": given.no_repeat_ngram}
        if given.method == "beam":
            penalty = given.length_penalty
            return BeamSearch(ends, beams=given.beams, length_penalty=penalty, **shared)
        if given.method == "greedy":
            return Sampling(ends, **shared)
        names = ("temperature", "top_k", "top_p")
        return Sampling(ends, **{name: given[name] for name in names}, **shared)

    @functools.cached_property
    def answers(self) -> Answers | None:
        """What follows training: the decoded test examples, if there are any."""
        if not self.splits.test:
            return None
        prompts, cut = self.prompts(self.splits.test, self._config.decode.max_tokens)
        if cut:
            self.notes["test"] = f"{cut:,} of {len(prompts):,} prompts lost their beginning"
        return Answers(self._config, self.tokenizer, self.search, self.splits.test, prompts)

    @functools.cached_property
    def samples(self) -> list[Example]:
        """The held-out examples that are decoded after every epoch: the first of different prompts."""
        different = {example.key: example for example in reversed(self.splits.validation)}
        return list(different.values())[::-1][: self._config.samples.count]

    @functools.cached_property
    def sample_prompts(self) -> list[np.ndarray]:
        """The tokens of their prompts."""
        return self.prompts(self.samples, self._config.samples.max_tokens)[0]

    def prompts(self, examples: Sequence[Example], max_tokens: int) -> tuple[list[np.ndarray], int]:
        """The tokens of examples up to the assistant's last turn.

        Args:
          examples: to be continued.
          max_tokens: of a continuation; the beginning of a prompt that leaves no room for it is cut.

        Returns:
          Token ids, and how many prompts were cut.

        Raises:
          InputError: there is no room at all.
        """
        room = self._decoder.max_length - max_tokens - self._special.count
        if room < 1:
            raise InputError(
                f"max_tokens={max_tokens:,} leaves no room for a prompt in the model's "
                f"{self._decoder.max_length:,} positions; lower config.decode.max_tokens (or "
                "config.samples.max_tokens)"
            )
        rows = self.format.prompts([example.prompt for example in examples])
        cut = [np.array(ids[-room:], np.int32) for ids in rows]
        return in_prompts(cut, self._special), sum(len(ids) > room for ids in rows)

    def prepare(self) -> None:
        """Makes all that is not made yet, see `Task.prepare`."""
        _ = self.train, self.evaluation_batches, self.answers, self.sample_prompts
        if self._template is not None:
            self._template.close()

    def metrics(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        """The validation loss of one run, per token, and what it means for a choice of tokens."""
        loss = self._validation.metrics(outputs)["loss"]
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

    def finish(self, trained: Callable[[], Trained]) -> dict[str, Any]:
        """Decodes the test examples, if there are any."""
        if self.answers is None:
            return {"test": {}, "missing": {}, "metric_notes": {}}
        return self.answers.record(trained())

    def record(
        self,
        settings: RunSettings,
        runs: Mapping[int, Mapping[str, Any]],
        model: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The run record of all seeds, with the format and the counts of the examples."""
        data = self._config.data.to_dict()
        return {
            **super().record(settings, runs, model),
            "format": tune_format.record(self.columns.form, data, self._template),
            "examples": {
                **{
                    split: dataclasses.asdict(counted) for split, (_, counted) in self._rows.items()
                },
                "test": len(self.splits.test),
            },
        }
