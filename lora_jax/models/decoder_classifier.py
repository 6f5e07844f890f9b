"""A decoder with a classification head on the last token of every example.

transformers calls it GPT2ForSequenceClassification, LlamaForSequenceClassification, and so on: a linear
layer without a bias (`score`) on what the last norm gives for the last token that is no padding.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.data.batch import Inputs
from lora_jax.dropout import DropoutKey
from lora_jax.models.decoder import Decoder
from lora_jax.sharding.axes import constrain, named

ROOT = "decoder/"  # of the decoder's paths
NORMAL = 0.02  # standard deviation of a new head's weights, as transformers has it for most models


class ScoreHead(nnx.Module):
    """One linear layer without a bias, which computes in float32: it is small."""

    def __init__(self, width: int, num_outputs: int, rngs: nnx.Rngs):
        normal, axes = nnx.initializers.normal(NORMAL), named("embed", None)
        self.score = nnx.Linear(
            width, num_outputs, use_bias=False, kernel_init=normal, kernel_metadata=axes, rngs=rngs
        )

    def __call__(self, x: Float[Array, "n width"]) -> Float[Array, "n outputs"]:
        """Logits from the hidden states of the last tokens."""
        scores: Array = self.score(x)
        return scores


class DecoderClassifier(nnx.Module):
    """A decoder and a head for classification or regression; see `hub.load_decoder_classifier`.

    Attributes:
      decoder: of any architecture; its output embedding is not used.
      head: new for a task.
      config: of the decoder.
    """

    per_output = ("head",)  # see `lora_jax.pool.route`

    def __init__(self, decoder: Decoder, num_outputs: int, rngs: nnx.Rngs):
        self.decoder = decoder
        self.head = ScoreHead(decoder.config.width, num_outputs, rngs)
        self.config = decoder.config

    def __call__(
        self,
        inputs: Inputs,
        rows: Int[Array | np.ndarray, " n"],
        columns: Int[Array | np.ndarray, " n"],
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "n outputs"]:
        """Logits (float32) of n examples.

        Args:
          inputs: packed token rows.
          rows: row of each example's last token.
          columns: its column.
          key: switches dropout on.
        """
        hidden = self.decoder.hidden(inputs, rows, columns, key=key)
        last: Array = self.decoder.norm(constrain(hidden, "batch", "width"))
        return self.head(last.astype(jnp.float32))
