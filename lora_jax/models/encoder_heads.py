"""Heads of encoders: what gives logits from the hidden states of classification tokens."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from lora_jax.dropout import DropoutKey, dropout, split_key
from lora_jax.models.activations import ACTIVATIONS
from lora_jax.models.encoder_config import EncoderConfig
from lora_jax.sharding.axes import named


def head_linear(config: EncoderConfig, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer of a head, which always computes in float32: it is small."""
    normal = nnx.initializers.normal(config.initializer_range)
    axes = named("embed", None)
    return nnx.Linear(
        config.hidden_size, outputs, kernel_init=normal, kernel_metadata=axes, rngs=rngs
    )


class DenseHead(nnx.Module):
    """Dropout, dense layer, activation, dropout, output layer; all new for a task.

    With tanh it is the head of fairseq's RoBERTa. DeBERTa's published models have a pooler in the dense
    layer's place, which is not pre-trained.
    """

    def __init__(self, config: EncoderConfig, num_outputs: int, rngs: nnx.Rngs):
        self.dense = head_linear(config, config.hidden_size, rngs)
        self.output = head_linear(config, num_outputs, rngs)
        self.rates = config.head_rates
        self.activation = config.head_activation

    def __call__(self, x: Float[Array, "n hidden"], key: DropoutKey) -> Float[Array, "n outputs"]:
        """Logits from the hidden states of the classification tokens."""
        before, behind = split_key(key, 2)
        dense = self.dense(dropout(x, self.rates[0], before))
        return self.output(dropout(ACTIVATIONS[self.activation](dense), self.rates[1], behind))


class OutputHead(nnx.Module):
    """Dropout and output layer: what is new for a task on top of BERT's pre-trained pooler."""

    def __init__(self, config: EncoderConfig, num_outputs: int, rngs: nnx.Rngs):
        self.output = head_linear(config, num_outputs, rngs)
        self.rate = config.head_dropout

    def __call__(self, x: Float[Array, "n hidden"], key: DropoutKey) -> Float[Array, "n outputs"]:
        """Logits from the pooled states."""
        return self.output(dropout(x, self.rate, key))
