"""Sentence classification and regression: a problem, and the task that trains an encoder on it.

`experiments.glue`, `experiments.classify` and `experiments.quickstart` differ in the problem only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from experiments.runs import fields, folder
from experiments.runs.origins import given, origin
from experiments.runs.record import by_seed, chosen_adapter, training_record
from experiments.runs.settings import RunSettings, mesh_for, model_arguments, run_settings
from experiments.runs.task import Trained
from lora_jax import digests, methods
from lora_jax.data import batches, tokenizers
from lora_jax.data.batch import Batch
from lora_jax.data.glue import Examples
from lora_jax.data.special_tokens import in_examples, special_ids
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.method import Method
from lora_jax.models import hub
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.partition import Params
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import in_host_memory
from lora_jax.training import step

Outputs = Mapping[str, np.ndarray]  # by split, (examples, outputs) or (examples,)


@dataclasses.dataclass(frozen=True, kw_only=True)
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
      report: (outputs by split) -> what a record has of the best epoch besides; None: nothing.
      description: of the data, for records and the notes of adapters.
      notes: on the data, by split.
    """

    name: str
    num_outputs: int
    regression: bool
    headline: str
    train: Examples | None
    evaluations: Mapping[str, Examples]
    score: Callable[[Outputs, Outputs], dict[str, float]]
    report: Callable[[Outputs], dict[str, Any]] | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ClassificationTask:
    """The `Task` of a problem: tokenised data, the encoder's configuration, the method."""

    head = hub.HEAD
    smaller_is_better = False
    function = staticmethod(step.outputs)

    def __init__(self, config: ConfigDict, read: Callable[[], Problem]):
        """Reads the problem, once everything that is quicker to check has proved good.

        Raises:
          FileNotFoundError, ValueError: bad settings, no model, or no data.
        """
        fields.check_run(config)
        self.settings = run_settings(config)
        if not (self.settings.train.epochs or config.get("eval_only", False)):
            raise InputError(
                "config.epochs is 0: an untrained head has no score; to evaluate an adapter set "
                "config.eval_only and config.adapter"
            )
        self.method = methods.create(head=hub.HEAD, **config.method.to_dict())
        self._folder = hub.find(config.model.name)  # before the data, which may be a long download
        self._encoder = hub.read_config(self._folder, **model_arguments(config))
        self.width = self._encoder.hidden_size
        self.mesh = mesh_for(config, self._encoder.heads)
        unused = hub.unused_heads(hub.check(self._folder, self._encoder))
        self._tokenizer = tokenizers.load_tokenizer(
            self._folder, tokenizers.ENCODER, self._encoder.vocab_size
        )
        problem = self.problem = read()
        self.name, self.headline = problem.name, problem.headline
        self.description = problem.description
        self.notes = {**({"model": unused} if unused else {}), **problem.notes}
        self.loss = step.regression_loss if problem.regression else step.classification_loss
        self._special = special_ids(self.method.special_tokens, self._encoder.vocab_size)
        self._room = min(config.data.max_length, self._encoder.max_length - self._special.count)
        self.max_length = self._room + self._special.count
        self._check_room()
        self.base = origin(self._encoder, self._tokenizer)
        adapters, notes = given(self.settings, self.name, self.base)
        self.notes = {**self.notes, **notes}
        self.inputs = {
            "model": hub.digest(self._folder),
            "tokenizer": tokenizers.digest(self._folder),
            **{f"{split} data": _digest(e) for split, e in problem.evaluations.items()},
            **({} if problem.train is None else {"train data": _digest(problem.train)}),
            **({"labels": _named(problem)} if "labels" in problem.description else {}),
            **adapters,
        }

    def _check_room(self) -> None:
        """Raises InputError if the length of examples leaves no token of a text."""
        pair = any(examples.second is not None for examples in self.problem.evaluations.values())
        special = self._tokenizer.num_special_tokens_to_add(pair=pair)
        if self._room < (least := special + 1 + pair):
            texts = "either text of a pair" if pair else "a text"
            raise InputError(
                f"config.data.max_length: of {self._room} tokens (no more than the model has positions) "
                f"{special} are special ones, which leaves none of {texts}; {self.name} needs at least "
                f"{least}, and real texts far more"
            )

    # What follows is made when it is first asked for: a run that is only read back needs none of it.

    @functools.cached_property
    def train(self) -> batches.TokenisedExamples | None:
        """The training examples as tokens; None where the task only evaluates."""
        texts = self.problem.train
        return None if texts is None else self._tokens(texts, "train")

    @functools.cached_property
    def evaluation_batches(self) -> list[Batch]:
        """All dev examples, one split after the other."""
        return [batch for pairs in self._packed.values() for _, batch in pairs]

    @functools.cached_property
    def _packed(self) -> dict[str, list[tuple[np.ndarray, Batch]]]:
        return {
            split: self.pack(examples, split)
            for split, examples in self.problem.evaluations.items()
        }

    def pack(self, examples: Examples, split: str) -> list[tuple[np.ndarray, Batch]]:
        """Tokenises examples and packs them for evaluation, see `batches.evaluation_batches`."""
        tokens = self._tokens(examples, split)
        return batches.evaluation_batches(
            tokens, self.width, self.max_length, parts=shares(self.mesh)
        )

    def _tokens(self, examples: Examples, split: str) -> batches.TokenisedExamples:
        tokenised = tokens(
            examples, self._tokenizer, self._room, self._encoder, f"{self.name} {split}"
        )
        return in_examples(tokenised, self._special)

    def prepare(self) -> None:
        """Makes all that is not made yet, see `Task.prepare`."""
        _ = self.train, self.evaluation_batches

    def shapes(self) -> nnx.Module:
        """The model in shapes."""
        return hub.abstract(self._encoder, self.problem.num_outputs)

    def model(self, seed: int) -> tuple[Classifier, jax.Array]:
        """The pre-trained model with a run's new head, and the key for what a method inserts."""
        keys = _keys(seed)
        with in_host_memory():
            model = hub.load_classifier(
                self._folder, self._encoder, self.problem.num_outputs, keys[0]
            )
        return model, keys[1]

    def start(self, seed: int) -> tuple[Params, jax.Array]:
        """The same without the pre-trained part: the head's leaves alone."""
        keys = _keys(seed)
        with in_host_memory():
            return hub.new_head(self._encoder, self.problem.num_outputs, keys[0]), keys[1]

    def factors(self, model: nnx.Module, method: Method, key: jax.Array) -> Params:
        """None besides the method's own, see `Task.factors`."""
        return {}

    def logits(self, outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """One run's logits (examples, outputs) of every dev split, in the order of the data.

        Args:
          outputs: of every evaluation batch.
        """
        result, remaining = {}, iter(outputs)
        for split, data in self.problem.evaluations.items():
            result[split] = np.zeros((len(data), self.problem.num_outputs), np.float32)
            for indices, _ in self._packed[split]:
                result[split][indices] = next(remaining)[: len(indices)]
        return result

    def metrics(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        """The scores of one run."""
        labels = {split: data.labels for split, data in self.problem.evaluations.items()}
        return self.problem.score(self.logits(outputs), labels)

    def finish(self, trained: Callable[[], Trained]) -> dict[str, Any]:
        """What the problem reports of the best epoch; the dev splits are scored after every epoch."""
        report = self.problem.report
        return {} if report is None else report(self.logits(trained().outputs()))

    def record(
        self,
        settings: RunSettings,
        runs: Mapping[int, Mapping[str, Any]],
        model: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The run record of all seeds, see `Task.record`."""
        return {
            "task": self.name,
            "method": self.method.name,
            "model": settings.model,
            "headline": self.headline,
            **self.description,
            **model,
            "warm_start": settings.train.init_adapter or None,
            "adapter": chosen_adapter(runs, self.headline),
            **training_record(list(runs.values()), self.headline),
            **({"notes": dict(self.notes)} if self.notes else {}),
            "inputs": dict(self.inputs),
            "seeds": by_seed(runs),
            "config": folder.plain(settings.config),
        }


def tokens(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    room: int,
    encoder: EncoderConfig,
    where: str,
) -> batches.TokenisedExamples:
    """Texts as tokens for an encoder, cut where they are longer than `room`.

    Raises:
      InputError: most of the text is unknown to the tokenizer, or the model cannot read pairs.
    """
    texts = [*examples.first, *(examples.second or ())]
    tokenizers.check_texts(texts, tokenizer, where)
    tokenised = batches.tokenise(examples, tokenizer, room)
    tokenizers.check_types(tokenised, encoder.type_vocab_size, where)
    return tokenised


def _digest(examples: Examples) -> str:
    return digests.of_texts([*examples.first, *(examples.second or ())], examples.labels)


def _named(problem: Problem) -> str:
    """The digest of what the labels of a problem mean: other names of classes are other labels."""
    return digests.of_texts([to_json(problem.description["labels"])])


def _keys(seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), 3)
