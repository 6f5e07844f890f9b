"""The decoded split of a data set: prompts, beam search, texts and their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from experiments.runs.scoring import Score
from experiments.runs.task import Trained
from lora_jax import digests, partition
from lora_jax.data.pairs import EvaluationSet, clean
from lora_jax.decoding.beam import BeamSearch, Continuations, beam_search
from lora_jax.decoding.predictions import Predictions, decode_all
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.low_rank import layers
from lora_jax.low_rank.merge import merge
from lora_jax.metrics import files
from lora_jax.metrics.generation import Scores
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params, Structure
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.sharding.hosts import from_main
from lora_jax.sharding.placement import Placement


class PromptDecoding:
    """Continues prompts with trained models; models that are alike share a compiled program.

    Attributes:
      prompts: token ids of every input.
      search: settings of the beam search, or of sampling.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        search: BeamSearch | Sampling,
        prompts: Sequence[np.ndarray],
        *,
        batch_size: int,
        depends_on: Mapping[str, Any],
        seed: int = 0,
    ):
        """Takes what is to be continued.

        Args:
          tokenizer: of the model.
          search: how tokens are chosen.
          prompts: token ids of every input.
          batch_size: prompts decoded at once.
          depends_on: JSON values that the results depend on, besides prompts and model.
        seed: of sampling.
        """
        self.search, self.prompts, self.tokenizer = search, list(prompts), tokenizer
        self._batch_size, self._seed = batch_size, seed
        self._depends_on = {**depends_on, "inputs": digests.of_sequences(self.prompts)}
        self._searches: dict[Structure, Callable[..., Continuations]] = {}

    def continued(self, trained: Trained) -> tuple[Predictions, list[list[int]]]:
        """Decodes all prompts: what was predicted, and the tokens of every text without its end.

        LoRA is merged first, but into no quantised base. A decoding that was stopped goes on from what
        lies in the folder.

        Raises:
          ValueError: the folder holds the predictions of another model or of other settings.
        """
        model = merged(trained.model)
        structure, params = partition.all_frozen(model)
        search = self._search(structure, trained.placement)
        predictions = decode_all(
            trained.placement.by_rows(partial(search, params)), self.prompts,
            batch_size=self._batch_size, path=trained.folder / "predictions.jsonl",
            settings={**self._depends_on, **trained.fingerprints}, label=f"decode {trained.name}",
        )  # fmt: skip
        ends = self.search.end_tokens
        kept = [ids[:-1] if ids and ids[-1] in ends else ids for ids in predictions.tokens]
        return predictions, kept

    def compiled(self, structure: Structure) -> Callable[..., Continuations]:
        """The program that continues prompts: of parameters, token ids padded behind, and lengths."""
        return jax.jit(self._continuing(structure))

    def _continuing(self, structure: Structure) -> Callable[..., Continuations]:
        def continued(params: Params, tokens: jax.Array, lengths: jax.Array) -> Continuations:
            model = partition.join(structure, {}, params)
            assert isinstance(model, Decoder)
            if isinstance(self.search, BeamSearch):
                return beam_search(model, tokens, lengths, self.search)
            key = _key_of(tokens, self._seed)
            found = sample(model, tokens, lengths, self.search, key)
            return Continuations(*(array[:, 0] for array in found))

        return continued

    def _search(self, structure: Structure, placement: Placement) -> Callable[..., Continuations]:
        """The compiled search; runs whose models are alike once merged share it."""
        if structure not in self._searches:
            continued = self._continuing(structure)
            self._searches[structure] = placement.jit(continued, out_shardings=placement.replicated)
        return self._searches[structure]


def merged(model: nnx.Module) -> nnx.Module:
    """A model with its low-rank updates merged, if it has any.

    A quantised base stays packed, and its updates beside it.
    """
    if not layers.adapted_layers(model) or quantised_layers(model):
        return model
    return merge(model)


def _key_of(tokens: jax.Array, seed: int) -> jax.Array:
    """The key of a batch: batches of other prompts draw otherwise, wherever a decoding is resumed."""
    weights = jnp.arange(1, tokens.size + 1, dtype=jnp.uint32).reshape(tokens.shape)
    mark = jnp.sum(tokens.astype(jnp.uint32) * (weights * jnp.uint32(2654435761)))
    return jax.random.fold_in(jax.random.key(seed), mark)


class Decoding(PromptDecoding):
    """Writes and scores the texts of a data set.

    Attributes:
      test: the inputs and their references.
    """

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: PreTrainedTokenizerBase,
        search: BeamSearch,
        test: EvaluationSet,
        prompts: Sequence[np.ndarray],
        score: Score,
    ):
        """Takes what is decoded and scored.

        Args:
          config: of the run.
          tokenizer: of the model.
          search: how tokens are chosen.
          test: the inputs and their references.
          prompts: token ids of every input.
          score: of the texts, see `scoring.scorer`.
        """
        depends_on = {
            **config.decode.to_dict(),
            "dataset": config.dataset,
            "split": config.data.decode_split,
        }
        super().__init__(
            tokenizer, search, prompts, batch_size=config.decode.batch_size, depends_on=depends_on
        )
        self.test, self._score = test, score

    def decode(self, trained: Trained) -> tuple[Predictions, list[str]]:
        """Decodes the test set; writes predictions.txt and references.txt into the run's folder.

        Raises:
          ValueError: see `continued`.
        """
        predictions, kept = self.continued(trained)
        texts = [clean(text) for text in self.tokenizer.batch_decode(kept)]
        files.write_hypotheses(trained.folder / "predictions.txt", texts)
        files.write_references(trained.folder / "references.txt", self.test.references)
        return predictions, texts

    def record(self, trained: Trained) -> dict[str, Any]:
        """Decodes, and scores the texts: what a seed's record says of it."""
        predictions, texts = self.decode(trained)
        scores = Scores(**from_main(lambda: dataclasses.asdict(self._score(texts))))
        return {
            "test": scores.values, "missing": scores.missing, "metric_notes": scores.notes,
            "decode": predictions.speed(),
        }  # fmt: skip
