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
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

import lora_jax
from benchmarks import timing
from benchmarks.mixed_peft import mixed_peft
from experiments.latency.models import random_adapter
from lora_jax import partition
from lora_jax.adapter_files import Adapter
from lora_jax.adapters import base_parameters, fingerprint
from lora_jax.data.packing import lay_out
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.pool import AdapterPool, packed_slots, route

_MODEL = flags.DEFINE_enum("model", "minilm", ["minilm", "smollm2"], "Shape of the model.")
_ADAPTERS = flags.DEFINE_list("adapters", ["1", "8", "64"], "Adapters in a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.")
_TOKENS = flags.DEFINE_integer("tokens", 16, "Tokens of every continuation.")
_PEFT = flags.DEFINE_bool("peft", True, "Beside peft.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_BATCH, _RANK = 64, 8
_TARGETS = ".*/attention/(query|value)"
Call = Callable[[], object]


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


def random_adapters(base: Any, count: int) -> dict[str, Adapter]:
    """Adapters with random values."""
    head = "head/.*" if _MODEL.value == "minilm" else None
    method = lora_jax.lora(_TARGETS, rank=_RANK, alpha=16, head=head)
    of_base = fingerprint(base_parameters(base, head))
    return {f"t{seed}": random_adapter(base, method, seed, of_base) for seed in range(count)}


class Inputs:
    """The inputs of a batch, and programs for all of them or some."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.ids = [rng.integers(5, 30000, n).astype(np.int32) for n in rng.integers(8, 60, _BATCH)]

    def arguments(self, indices: np.ndarray) -> tuple[Any, ...]:
        """Of these inputs: packed rows and places, or padded prompts and lengths."""
        ids = [self.ids[i] for i in indices]
        if _MODEL.value == "minilm":
            count = -(-sum(map(len, ids)) * 11 // 10 // 128)
            packed, places = lay_out(ids, (max(count, 1), 128))
            return packed, *np.array(places, np.int32).T
        rows = np.zeros((len(ids), 64), np.int32)
        for row, tokens in zip(rows, ids, strict=True):
            row[: len(tokens)] = tokens
        return rows, np.array(list(map(len, ids)), np.int32)

    def run(self, model: Any, *arguments: Any) -> Any:
        """The logits, or the tokens."""
        if _MODEL.value == "minilm":
            return model(*arguments)
        settings = Sampling((), max_tokens=_TOKENS.value)
        return sample(model, *arguments, settings, jax.random.key(0)).tokens


def frozen_program(inputs: Inputs, model: Any) -> tuple[Callable[..., Any], Any]:
    """A program of parameters and arguments, and the parameters."""
    structure, params = partition.all_frozen(model)
    return jax.jit(lambda p, *a: inputs.run(partition.join(structure, {}, p), *a)), params


def of_pool(inputs: Inputs, base: Any, adapters: dict[str, Adapter], used: int, slots: int) -> Call:
    """All inputs in one batch, with `used` of the adapters, out of a pool of `slots`."""
    pool = AdapterPool(base, [adapters["t0"].method], capacity=slots)
    for name in list(adapters)[:used]:
        pool.add(name, adapters[name])
    names = [f"t{i % used}" for i in range(_BATCH)]
    arguments = inputs.arguments(np.arange(_BATCH))
    if _MODEL.value == "smollm2":
        answer = pool.compiled(inputs.run, looped=True)
        return lambda: answer(names, *arguments).block_until_ready()

    def run(slots: Any, frozen: Any, numbers: Any, packed: Any, rows: Any, columns: Any) -> Any:
        model = pool.model(slots, frozen)
        route(model, packed_slots(packed.segments, rows, columns, numbers), numbers)
        return model(packed, rows, columns)

    program = jax.jit(run)
    return lambda: program(*pool.ready(names), *arguments).block_until_ready()


def merged_in_turn(inputs: Inputs, base: Any, adapters: dict[str, Adapter], used: int) -> Call:
    """For each adapter its merged model and its share of the inputs, one after the other."""
    parts = []
    program = None
    for number in range(used):
        model = lora_jax.merge(lora_jax.attach(base, adapters[f"t{number}"]))
        own, params = frozen_program(inputs, model)
        program = program or own
        parts.append((params, inputs.arguments(np.arange(number, _BATCH, used))))
    assert program is not None
    run = program
    return lambda: [run(params, *arguments) for params, arguments in parts][-1].block_until_ready()


def main(_: list[str]) -> None:
    """Measures all contenders in turn and prints the table."""
    counts = [int(count) for count in _ADAPTERS.value]
    base, inputs = base_model(), Inputs()
    adapters = random_adapters(base, max(counts))
    calls: dict[str, Call] = {"merged, one task": merged_in_turn(inputs, base, adapters, 1)}
    for count in counts:
        calls[f"pool, {count}"] = of_pool(inputs, base, adapters, count, count)
    if len(counts) > 1:
        calls[f"pool of {max(counts)}, {min(counts)} used"] = of_pool(
            inputs, base, adapters, min(counts), max(counts)
        )
    for count in counts[1:]:
        calls[f"merged, {count} batches in turn"] = merged_in_turn(inputs, base, adapters, count)
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
