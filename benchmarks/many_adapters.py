"""Many adapters in one batch: examples a second of a pool against one merged model and against peft.

    python -m benchmarks.many_adapters [--model=minilm|smollm2] [--adapters=1,8,64] [--rounds=5]
        [--tokens=16] [--output=FILE.json]

64 inputs of random lengths, LoRA r = 8 on queries and values, random weights of the model's shape, float32.
`minilm` is a classifier over packed rows, `smollm2` continues prompts greedily with a cache. Beside the pool:
one merged model for all inputs (what a task alone costs), one merged model for each adapter and its inputs
in turn, and peft's mixed batch (`adapter_names`), padded to the longest as its users have it.
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
from absl import flags
from flax import nnx

from benchmarks import pool_calls, timing
from benchmarks.mixed_peft import mixed_peft
from benchmarks.pool_calls import Call
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig

_MODEL = flags.DEFINE_enum("model", "minilm", ["minilm", "smollm2"], "Shape of the model.")
_ADAPTERS = flags.DEFINE_list("adapters", ["1", "8", "64"], "Adapters in a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.")
_TOKENS = flags.DEFINE_integer("tokens", 16, "Tokens of every continuation.")
_PEFT = flags.DEFINE_bool("peft", True, "Beside peft.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_BATCH = 64


def base_model() -> Any:
    """A model of the shape with random weights."""
    if _MODEL.value == "minilm":
        encoder = EncoderConfig(
            "bert", vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536, max_position_embeddings=512, type_vocab_size=2,
        )  # fmt: skip
        return Classifier(encoder, 2, nnx.Rngs(0))
    decoder = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Llama(decoder, nnx.Rngs(0))


def main(_: list[str]) -> None:
    """Measures all contenders in turn and prints the table."""
    counts = [int(count) for count in _ADAPTERS.value]
    base, decodes = base_model(), _MODEL.value == "smollm2"
    inputs = pool_calls.Inputs(_BATCH, 30000, _TOKENS.value if decodes else None)
    adapters = pool_calls.random_adapters(base, max(counts), None if decodes else "head/.*")
    calls: dict[str, Call] = {
        "merged, one task": pool_calls.merged_in_turn(inputs, base, adapters, 1)
    }
    for count in counts:
        calls[f"pool, {count}"] = pool_calls.of_pool(inputs, base, adapters, count, count)
    if len(counts) > 1:
        calls[f"pool of {max(counts)}, {min(counts)} used"] = pool_calls.of_pool(
            inputs, base, adapters, min(counts), max(counts)
        )
    for count in counts[1:]:
        calls[f"merged, {count} batches in turn"] = pool_calls.merged_in_turn(
            inputs, base, adapters, count
        )
    if _PEFT.value:
        for count in counts:
            calls[f"peft, {count}"] = mixed_peft(_MODEL.value, inputs.ids, count, _TOKENS.value)
    seconds = timing.interleaved(calls, _ROUNDS.value)
    lines = []
    for name in calls:
        ratio = timing.ratio(seconds, "merged, one task", name)
        lines.append(
            f"  {name}: {_BATCH / statistics.median(seconds[name]):.1f} examples/s, "
            f"{ratio['median']:.2f} of one merged model ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )
    title = f"{_BATCH} inputs, {_MODEL.value} shape, {jax.default_backend()}"
    timing.report(title, lines, {"seconds": seconds}, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
