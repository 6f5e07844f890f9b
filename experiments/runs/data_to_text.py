"""A corpus for decoders: the task from its texts to scores of what the model writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.runs import scoring
from experiments.runs.decoding import Decoding
from experiments.runs.language import DecoderTask, Validation, end_tokens
from experiments.runs.task import Trained
from lora_jax import digests
from lora_jax.data import completions, data_to_text, tokenizers
from lora_jax.data.batch import Batch
from lora_jax.data.pairs import Pairs, by_context
from lora_jax.data.special_tokens import in_pairs, in_prompts
from lora_jax.decoding.beam import BeamSearch
from lora_jax.errors import InputError
from lora_jax.inputs import SUBSETS


class DataToTextTask(DecoderTask):
    """The `Task` of a corpus: texts and tokens, the decoder's configuration, the method."""

    def __init__(self, config: ConfigDict):
        """Reads the texts, once everything that is quicker to check has proved good.

        Raises:
          FileNotFoundError, ValueError: bad settings, no model, or no data.
        """
        super().__init__(config, config.dataset)
        data = config.data
        self._source: str = data.source
        for_search = ("beams", "length_penalty", "no_repeat_ngram", "max_tokens")
        settings = {name: config.decode[name] for name in for_search}
        self._search, self._config = BeamSearch(end_tokens(self.tokenizer), **settings), config
        self._check_room()
        self.split = data.decode_split
        self._pairs: dict[str, Pairs] = {}  # for training, by split
        if config.epochs and not config.eval_only:
            every = self._read(self._trained_split(), "train")
            take = every.balanced if data.get("balanced") else every.take
            self._pairs = {
                "train": take(data.max_examples),
                "valid": self._read("valid").take(data.max_eval_examples),
            }
        self.inputs |= {
            f"{split} data": digests.of_texts([*pairs.contexts, *pairs.completions])
            for split, pairs in self._pairs.items()
        }
        if not self.split:
            if not self._pairs:
                raise InputError(
                    "config.data.decode_split is '', which decodes nothing, but without training "
                    "(config.epochs, config.eval_only) there is nothing else to do: name one of "
                    f"{list(data_to_text.SPLITS)}"
                )
            return
        self._test = by_context(self._read(self.split)).take(data.max_prompts)
        references = [text for texts in self._test.references for text in ("\n", *texts)]
        subsets = self._test.subsets  # of which each has scores of its own
        self.inputs["decoded data"] = digests.of_texts([*self._test.contexts, *references])
        if any(subsets):
            self.inputs[SUBSETS] = digests.of_texts(subsets)
        self._score, tables = scoring.scorer(self.name, self.split, self._source, self._test)
        if tables:
            self.inputs["decoded tables"] = tables

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
    def decoding(self) -> Decoding | None:
        """What follows training; None where no split is decoded."""
        if not self.split:
            return None
        room = self.max_length - self._search.max_tokens - self._special.count
        prompts = completions.prompts(self._test, self.tokenizer, room)
        return Decoding(
            self._config, self.tokenizer, self._search, self._test,
            in_prompts(prompts, self._special), self._score,
        )  # fmt: skip

    def _check_room(self) -> None:
        """Raises InputError if what is to be generated leaves a prompt no token."""
        most = self.max_length - self._special.count - 1
        if self._search.max_tokens > most:
            raise InputError(
                f"config.decode.max_tokens is {self._search.max_tokens}, but of {self.max_length} tokens "
                "(config.data.max_length, and no more than the model has positions) a prompt needs at "
                f"least one: lower it to {most} or less"
            )

    def _trained_split(self) -> str:
        """The split that is trained on; InputError if test is both that and the one that is scored."""
        split: str = self._config.data.get("train_split", "train")
        if split == self.split == "test":
            raise InputError(
                "config.data.train_split and config.data.decode_split are both 'test': the model would be "
                "scored on what it was trained on. Set config.data.decode_split='valid'"
            )
        return split

    def _read(self, split: str, used: str = "") -> Pairs:
        """The texts of a split, which may be used as another one: the notes on them are that one's."""
        pairs = data_to_text.read(self.name, split, self._source)
        texts = [*dict.fromkeys(pairs.contexts), *pairs.completions]
        tokenizers.check_texts(texts, self.tokenizer, f"{self.name} {split}")
        stands_in = "" if used in ("", split) else f"the {split} split stands in for it"
        if notes := "; ".join(filter(None, (stands_in, pairs.notes))):
            self.notes[used or split] = notes
        return pairs

    def _tokenised(self, split: str) -> completions.TokenisedPairs:
        room = self.max_length - self._special.count
        try:
            pairs = completions.tokenise_pairs(self._pairs[split], self.tokenizer, room)
        except InputError as error:
            raise InputError(f"config.data.max_length, {self.name} {split}: {error}") from error
        return in_pairs(pairs, self._special)

    def prepare(self) -> None:
        """Makes all that is not made yet, see `Task.prepare`."""
        _ = self.train, self.evaluation_batches, self.decoding

    def metrics(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        """The validation loss of one run."""
        return self._validation.metrics(outputs)

    def finish(self, trained: Callable[[], Trained]) -> dict[str, Any]:
        """Decodes the test set and scores the texts; nothing where no split is decoded."""
        return {} if self.decoding is None else self.decoding.record(trained())
