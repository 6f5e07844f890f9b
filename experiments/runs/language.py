"""What experiments on decoders share: the model and its tokenizer, validation loss, ends of texts."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from experiments.runs import fields, folder
from experiments.runs.origins import given, origin
from experiments.runs.record import by_seed, chosen_adapter, scores_record, training_record
from experiments.runs.settings import RunSettings, mesh_for, model_arguments, run_settings
from lora_jax import methods
from lora_jax.data import tokenizers
from lora_jax.data.batch import Batch
from lora_jax.data.batches import evaluation_batches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.special_tokens import special_ids
from lora_jax.method import Method
from lora_jax.methods import loftq
from lora_jax.models import hub
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import in_host_memory
from lora_jax.training import step
from lora_jax.training.records import environment, peak_memory

_TOKENS = 1024  # of an evaluation batch: its logits have half as many rows of the vocabulary's size


class Validation:
    """The mean cross-entropy per counted token of validation rows, not smoothed.

    Attributes:
      batches: all rows once.
    """

    def __init__(self, examples: TokenisedPairs, *, width: int, max_length: int, mesh: Mesh):
        """Packs the rows.

        Args:
          examples: validation rows.
          width: of the model, for the choice of shapes.
          max_length: longest possible row.
          mesh: whose devices share the rows out.
        """
        packed = evaluation_batches(examples, width, max_length, _TOKENS, shares(mesh))
        self.batches = [batch for _, batch in packed]
        self._count = examples.outputs(range(len(examples)))

    @staticmethod
    def function(model: nnx.Module, batch: Batch) -> Float[Array, ""]:
        """What is computed of a batch: the sum over its tokens."""
        return jnp.sum(step.completion_losses(model, batch, None))

    def metrics(self, sums: Sequence[np.ndarray]) -> dict[str, float]:
        """The loss of one model, from what `function` gave for every batch."""
        total = sum(np.asarray(value, np.float64) for value in sums)
        return {"loss": float(total / self._count)}


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The end-of-text token and, where it is one token, the empty line (GPT-2: 50256 and 628)."""
    line = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return (tokenizer.eos_token_id, *line) if len(line) == 1 else (tokenizer.eos_token_id,)


class DecoderTask:
    """The part of a `Task` that all tasks on decoders share; texts and what is made of them are theirs."""

    head = None
    headline = "loss"
    description: Mapping[str, Any] = types.MappingProxyType({})
    smaller_is_better = True
    function = staticmethod(Validation.function)
    split = ""  # that is decoded

    def __init__(self, config: ConfigDict, name: str):
        """Checks the config and the files of the model, without reading a weight.

        Args:
          config: of the run.
          name: of the task.

        Raises:
          FileNotFoundError, ValueError: bad settings, or no model.
        """
        fields.check_run(config)
        self.settings = run_settings(config)
        self.method = methods.create(**config.method.to_dict())
        self._folder = hub.find(config.model.name)
        self._decoder = hub.read_decoder_config(self._folder, **model_arguments(config))
        self.width = self._decoder.width
        self.mesh = mesh_for(config, self._decoder.heads)
        self.name, self.loss = name, step.completion_loss(config.label_smoothing)
        self._special = special_ids(self.method.special_tokens, self._decoder.vocab_size)
        longest = config.data.max_length + self._special.count
        self.max_length = min(longest, self._decoder.max_length)
        unused = hub.unused_heads(hub.check(self._folder, self._decoder))
        self.notes: dict[str, str] = {"model": unused} if unused else {}
        self.tokenizer = tokenizers.load_tokenizer(
            self._folder, tokenizers.DECODER, self._decoder.vocab_size
        )
        self.base = origin(self._decoder, self.tokenizer)
        adapters, notes = given(self.settings, name, self.base)
        self.notes |= notes
        self.inputs = {
            "model": hub.digest(self._folder),
            "tokenizer": tokenizers.digest(self._folder),
            **adapters,
        }

    def shapes(self) -> nnx.Module:
        """The model in shapes."""
        return hub.abstract(self._decoder, 0)

    def model(self, seed: int) -> tuple[Decoder, jax.Array]:
        """The pre-trained model, and the key for what a method inserts in a run."""
        with in_host_memory():
            return hub.load_decoder(self._folder, self._decoder), jax.random.key(seed)

    def start(self, seed: int) -> tuple[Params, jax.Array]:
        """The same without the pre-trained part: nothing besides the key."""
        return {}, jax.random.key(seed)

    def factors(self, model: nnx.Module, method: Method, key: jax.Array) -> Params:
        """Initial values of low-rank updates that are not the method's: LoftQ's, if the config says so."""
        if not self.settings.config.get("loftq"):
            return {}
        with in_host_memory():
            return loftq.start(model, method, key, hub.leaf_reader(self._folder, self._decoder))

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
