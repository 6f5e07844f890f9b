"""The parameters of DeBERTa-v2 (He et al. 2021) without its computation, for counting.

The project does not run DeBERTa. This tree has the leaves of the published model, stacked over
layers as `encoder` has them, so that methods can be inserted and their values counted with
`nnx.eval_shape`. Nothing here can be called.
"""

from __future__ import annotations

import dataclasses

from flax import nnx

from lora_jax.models.stack import Stack


@dataclasses.dataclass(frozen=True)
class DebertaShapes:
    """The fields of the published config that give sizes; the defaults are XXLarge's.

    Read in experiments/language_model/xxlarge.json of microsoft/DeBERTa. Its other fields say what
    there is: positions are relative only (`relative_attention`, `position_biased_input` false) with
    a LayerNorm (`norm_rel_ebd`) and the attention's own projections (`share_att_key`), and there are
    no token types.
    """

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 48
    intermediate_size: int = 6144
    position_buckets: int = 256
    conv_kernel_size: int = 3


class Attention(nnx.Module):
    """Projections and LayerNorm of the disentangled attention."""

    def __init__(self, config: DebertaShapes, rngs: nnx.Rngs):
        d = config.hidden_size
        self.query = nnx.Linear(d, d, rngs=rngs)
        self.key = nnx.Linear(d, d, rngs=rngs)
        self.value = nnx.Linear(d, d, rngs=rngs)
        self.output = nnx.Linear(d, d, rngs=rngs)
        self.norm = nnx.LayerNorm(d, rngs=rngs)


class FeedForward(nnx.Module):
    """The two linear layers and their LayerNorm."""

    def __init__(self, config: DebertaShapes, rngs: nnx.Rngs):
        self.up = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.down = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)
        self.norm = nnx.LayerNorm(config.hidden_size, rngs=rngs)


class Layer(nnx.Module):
    """One Transformer layer."""

    def __init__(self, config: DebertaShapes, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)


class Embeddings(nnx.Module):
    """Word embeddings and their LayerNorm; the relative positions belong to the encoder."""

    def __init__(self, config: DebertaShapes, rngs: nnx.Rngs):
        self.word = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.norm = nnx.LayerNorm(config.hidden_size, rngs=rngs)


class Convolution(nnx.Module):
    """The convolution beside the first layer, and its LayerNorm."""

    def __init__(self, config: DebertaShapes, rngs: nnx.Rngs):
        d = config.hidden_size
        self.conv = nnx.Conv(d, d, kernel_size=(config.conv_kernel_size,), rngs=rngs)
        self.norm = nnx.LayerNorm(d, rngs=rngs)


class Encoder(nnx.Module):
    """Everything that is pre-trained."""

    def __init__(self, config: DebertaShapes, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs)
        self.relative = nnx.Embed(2 * config.position_buckets, config.hidden_size, rngs=rngs)
        self.norm = nnx.LayerNorm(config.hidden_size, rngs=rngs)  # of `relative`
        self.convolution = Convolution(config, rngs)
        self.layers = Stack(lambda r: Layer(config, r), config.num_hidden_layers, rngs=rngs)


class Head(nnx.Module):
    """Pooler and output, both new for a task."""

    def __init__(self, config: DebertaShapes, num_outputs: int, rngs: nnx.Rngs):
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.output = nnx.Linear(config.hidden_size, num_outputs, rngs=rngs)


class ClassifierShapes(nnx.Module):
    """The encoder with a classification head, as `encoder.Classifier`."""

    def __init__(self, config: DebertaShapes, num_outputs: int, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)
        self.head = Head(config, num_outputs, rngs)
