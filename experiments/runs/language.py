"""What experiments on decoders share: validation loss and tokens that end a text."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from transformers import PreTrainedTokenizerBase

from lora_jax.data.batch import Batch
from lora_jax.data.batches import evaluation_batches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.sharding.mesh import shares
from lora_jax.training import step

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
