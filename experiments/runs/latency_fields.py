"""The fields of configs of experiments.latency."""

from __future__ import annotations

from experiments.runs.field import Field, Fields
from lora_jax.methods.bottleneck import MOST_SIZE
from lora_jax.ranges import SEED, OneOf, Several, Text, Whole

LATENCY_OPEN = ("method", "adapters")  # parts of a config that the methods check
LATENCY: Fields = {
    "model.name": Field(
        Text(empty="a GPT-2 of the sizes below with random weights"), "a decoder: a folder, or a hub name"
    ),
    "model.n_embd": Field(Whole(most=2**16), "width"),
    "model.n_layer": Field(Whole(most=1000), "layers"),
    "model.n_head": Field(Whole(most=2**10), "attention heads of a layer"),
    "model.vocab_size": Field(Whole(least=2, most=2**20), "tokens that the model knows"),
    "model.n_positions": Field(Whole(most=2**16), "tokens of the longest row"),
    "base_dtype": Field(OneOf(("float32", "bfloat16")), "of all weights and of the computation"),
    "outputs": Field(OneOf(("all", "last")), "logits of all tokens, or of the last one of every row"),
    "batch_sizes": Field(Several(of=Whole(most=4096)), "rows of a batch, timed with every length"),
    "lengths": Field(Several(of=Whole(most=2**16)), "tokens of a row"),
    "bottlenecks": Field(
        Several(of=Whole(most=MOST_SIZE), empty="no Figure 5"),
        "sizes of Adapter H and of Adapter L, timed beside `adapters`",
    ),
    "trials": Field(
        Whole(least=2, most=100_000), "timed passes of every contender at every point"
    ),
    "seed": Field(SEED, "of weights, tokens, and the order of the contenders"),
}  # fmt: skip
