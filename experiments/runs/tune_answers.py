"""The answers of a tuned model to test prompts, beside prompts and references, and how many are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from experiments.runs.decoding import PromptDecoding
from experiments.runs.task import Trained
from lora_jax.data.conversations import Example
from lora_jax.decoding.beam import BeamSearch
from lora_jax.decoding.sampling import Sampling
from lora_jax.files import to_json, write_text
from lora_jax.metrics.answers import METRICS
from lora_jax.sharding.hosts import is_main

FILE = "answers.jsonl"


class Answers(PromptDecoding):
    """Decodes test examples and compares the texts with their references."""

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: PreTrainedTokenizerBase,
        search: BeamSearch | Sampling,
        examples: Sequence[Example],
        prompts: Sequence[np.ndarray],
    ):
        """Takes the examples and the tokens of their prompts."""
        decode = config.decode.to_dict()
        super().__init__(
            tokenizer, search, prompts, batch_size=decode["batch_size"], depends_on=decode,
            seed=decode["seed"],
        )  # fmt: skip
        self._examples, self._metric = list(examples), str(config.metric)

    def record(self, trained: Trained) -> dict[str, Any]:
        """Decodes, writes answers.jsonl, and says how many are right, if the config asks for that."""
        predictions, kept = self.continued(trained)
        texts = [
            str(text).strip()
            for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        ]
        right = self._right(texts)
        lines = [
            {"prompt": example.text, "reference": example.reference, "prediction": text}
            | ({} if is_right is None else {"right": is_right})
            for example, text, is_right in zip(self._examples, texts, right, strict=True)
        ]
        if is_main():
            content = "".join(to_json(line, indent=None) + "\n" for line in lines)
            write_text(trained.folder / FILE, content)
        judged = [is_right for is_right in right if is_right is not None]
        scores = {self._metric: sum(judged) / len(judged)} if judged else {}
        missing = {}
        if self._metric and not judged:
            missing[self._metric] = "the test examples have no references"
        return {
            "test": scores, "missing": missing, "metric_notes": {}, "decode": predictions.speed(),
        }  # fmt: skip

    def _right(self, texts: Sequence[str]) -> list[bool | None]:
        """Whether each text is right; None where nothing says so."""
        if not self._metric:
            return [None] * len(texts)
        judge = METRICS[self._metric]
        return [
            judge(text, example.reference) if example.reference else None
            for text, example in zip(texts, self._examples, strict=True)
        ]
