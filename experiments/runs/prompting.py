"""A classification task put to a decoder in prompts: its data as tokens, its model, its scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from experiments.runs import fields, intervals, origins
from experiments.runs.decoding import merged
from experiments.runs.prompting_fields import PROMPTING
from lora_jax import digests, partition
from lora_jax.adapter_files import digest
from lora_jax.adapters import Adapter, attach, load_adapter
from lora_jax.data import glue, glue_prompts, glue_tasks, tokenizers
from lora_jax.data.batch import Batch
from lora_jax.data.glue import Examples
from lora_jax.data.special_tokens import in_prompts, special_ids
from lora_jax.decoding import likelihoods, scored
from lora_jax.decoding.likelihoods import Question
from lora_jax.errors import InputError
from lora_jax.files import to_json, write_text
from lora_jax.models import hub
from lora_jax.models.attention.attend import check_platform
from lora_jax.sharding.hosts import is_main
from lora_jax.sharding.placement import in_host_memory

ACCURACY = "accuracy"  # by the sum of a text's log probabilities
PER_TOKEN = "accuracy_per_token"  # by their mean
UNCONDITIONAL = "accuracy_unconditional"  # by the sum less that without the query


class Prompting:
    """What a config asks of a decoder.

    Attributes:
      task: of GLUE.
      split: that is scored.
      queries: its examples.
      inputs: digests of model, tokenizer, data and adapter, see `lora_jax.inputs`.
      notes: what a reader of the record must know.
    """

    def __init__(self, config: ConfigDict):
        """Reads model configuration, tokenizer and data.

        Raises:
          FileNotFoundError, ValueError: bad settings, no model, no data, or an adapter of another base or
            task.
        """
        fields.check_config(config, PROMPTING)
        self._config = config
        self.task = glue_tasks.task(config.task)
        glue_prompts.check(self.task, config.form)
        if not config.shots and len(config.seeds) > 1:
            raise InputError(
                f"config.seeds are {tuple(config.seeds)}, but with config.shots=0 nothing is drawn and all "
                'of them score alike: set config.seeds="(0,)"'
            )
        model = config.model
        check_platform(model.attention, jax.default_backend())
        self._folder = hub.find(model.name)
        self._decoder = hub.read_decoder_config(
            self._folder, base_format=model.base_format, attention=model.attention
        )
        hub.check(self._folder, self._decoder)
        self._tokenizer = tokenizers.load_tokenizer(
            self._folder, tokenizers.DECODER, self._decoder.vocab_size
        )
        self.notes: dict[str, str] = {}
        self.adapter = self._read_adapter(config.adapter)
        if self.adapter and config.form != "text":
            self.notes["form"] = (
                "the adapter was trained on other prompts (config.form=text) than it is asked in"
            )
        self.split = self.task.evaluations[0]
        source = config.data.source
        every = glue.read(self.task, self.split, source)
        self.queries = every.take(config.data.max_eval_examples)
        self._train = glue.read(self.task, "train", source) if config.shots else every.subset([])
        self.inputs = {
            "model": hub.digest(self._folder),
            "tokenizer": tokenizers.digest(self._folder),
            "evaluation data": _digest(self.queries),
            **({"train data": _digest(self._train)} if config.shots else {}),
            **({origins.ADAPTER: digest(self.adapter)} if self.adapter else {}),
        }

    def _read_adapter(self, name: str) -> Adapter | None:
        if not name:
            return None
        adapter = load_adapter(name)
        here = origins.origin(self._decoder, self._tokenizer)
        if note := origins.check(adapter, here, name):
            self.notes[origins.ADAPTER] = note
        expected = self._config.adapter_task or f"{self.task.name}_text"
        if (there := adapter.notes.get("task")) != expected:
            raise InputError(
                f"{name} was trained on the task {there!r}, not on {expected!r}: where that is meant, set "
                f"config.adapter_task={there!r}"
            )
        return adapter

    @property
    def description(self) -> dict[str, Any]:
        """What was asked, for records."""
        shots, classes = self._config.shots, self.task.num_outputs
        return {
            "form": self._config.form,
            "shots": shots,
            "demonstrations": shots * classes,
            "examples": len(self.queries),
            "classes": classes,
            # Of the most frequent class: what no look at the texts reaches.
            "majority": float(np.bincount(self.queries.labels).max() / len(self.queries)),
        }

    @functools.cached_property
    def _scoring(self) -> tuple[Callable[[Batch], np.ndarray], int]:
        """What scores a batch, and the number of the model's values."""
        with in_host_memory():
            base = hub.load_decoder(self._folder, self._decoder)
            name = self._config.adapter
            adapted = attach(base, self.adapter, None, name) if self.adapter else base
        whole = merged(adapted)
        whole.eval()
        structure, values = partition.all_frozen(whole)
        values = jax.device_put(values)

        @jax.jit
        def score(values: partition.Params, batch: Batch) -> jax.Array:
            return likelihoods.log_probabilities(partition.join(structure, {}, values), batch)

        count = sum(leaf.size for leaf in jax.tree.leaves(values))
        return lambda batch: np.asarray(score(values, batch)), count

    @property
    def parameters(self) -> int:
        """Number of the model's values, the adapter's merged or beside."""
        return self._scoring[1]

    def questions(self, seed: int) -> tuple[list[Question], Examples]:
        """The queries behind the demonstrations of a seed, and last the classes without a query.

        Returns:
          One question more than there are queries; and the demonstrations.
        """
        shown = glue_prompts.demonstrations(self._train, self._config.shots, self.task.labels, seed)
        made = glue_prompts.prompts(
            self.task, self._config.form, shown, self.queries, self._tokenizer
        )
        prompts, whole = [*made.prompts, made.context], [*made.whole, made.contexts]
        found = [likelihoods.split(*pair) for pair in zip(prompts, whole, strict=True)]
        counts = self.adapter.method.special_tokens if self.adapter else (0, 0)
        special = special_ids(counts, self._decoder.vocab_size)
        with_special = in_prompts([np.array(q.prompt, np.int32) for q in found], special)
        return [
            Question(prompt.tolist(), question.choices)
            for prompt, question in zip(with_special, found, strict=True)
        ], shown

    def check_room(self) -> None:
        """Raises InputError for prompts that are longer than the model's positions."""
        for seed in self._config.seeds:
            rows = likelihoods.choice_rows(self.questions(seed)[0])
            scored.check_room(rows, self._decoder.max_length)

    def score(self, seed: int, folder: Path) -> dict[str, Any]:
        """Scores one draw of demonstrations; what a seed's record says of it.

        Args:
          seed: of the draw.
          folder: gets predictions.jsonl, by which a scoring that was stopped goes on, and answers.jsonl.
        """
        questions, shown = self.questions(seed)
        rows = likelihoods.choice_rows(questions)
        found = scored.score_all(
            self._scoring[0], rows, width=self._decoder.width, max_length=self._decoder.max_length,
            path=folder / "predictions.jsonl", settings=self.inputs,
            label=f"{self.task.name} {self._config.shots}-shot seed {seed}",
        )  # fmt: skip
        sums = found.sums.reshape(-1, self.task.num_outputs)
        of_queries, unconditional = sums[:-1], sums[-1]
        tokens = rows.tokens.reshape(sums.shape)[:-1]
        by_rule = {
            ACCURACY: of_queries,
            PER_TOKEN: of_queries / tokens,
            UNCONDITIONAL: of_queries - unconditional,
        }
        labels = self.queries.labels
        right = {name: _chosen(values) == labels for name, values in by_rule.items()}
        unknown = {name: int((_chosen(values) < 0).sum()) for name, values in by_rule.items()}
        self._write_answers(folder / "answers.jsonl", of_queries)
        return {
            "test": {name: float(hits.mean()) for name, hits in right.items()},
            "missing": {},
            "metric_notes": {
                name: f"{count:,} of {len(labels):,} queries count as wrong, as the model gives no numbers"
                for name, count in unknown.items()
                if count
            },
            "interval": list(intervals.share(int(right[ACCURACY].sum()), len(labels))),
            "predicted": [
                int((_chosen(of_queries) == label).sum()) for label in range(self.task.num_outputs)
            ],
            "demonstrations": _digest(shown),
            "tokens": found.read,
            "seconds": found.seconds,
        }

    def _write_answers(self, path: Path, sums: np.ndarray) -> None:
        """One line for each query: its label, the class that was chosen, and all log likelihoods."""
        names = self.task.labels
        lines = [
            to_json(
                {
                    "label": names[label],
                    "prediction": names[chosen] if chosen >= 0 else None,
                    "log_likelihoods": dict(zip(names, values.tolist(), strict=True)),
                },
                indent=None,
            )
            for label, values, chosen in zip(
                self.queries.labels, sums, _chosen(sums).tolist(), strict=True
            )
        ]
        if is_main():
            write_text(path, "".join(f"{line}\n" for line in lines))


def _chosen(values: Float[np.ndarray, "queries classes"]) -> Int[np.ndarray, " queries"]:
    """The class of the highest value, the first one of equals; -1 where a value is no number."""
    chosen: np.ndarray = np.where(np.isfinite(values).all(axis=1), values.argmax(axis=1), -1)
    return chosen


def _digest(examples: Examples) -> str:
    return digests.of_texts([*examples.first, *(examples.second or ())], examples.labels)


def means(records: Mapping[int, Mapping[str, Any]], name: str) -> intervals.Interval | None:
    """The mean score over draws with the interval of Student's t; None of draws that are all alike."""
    values = [record["test"][name] for record in records.values()]
    return intervals.mean(values) if len(set(values)) > 1 else None
