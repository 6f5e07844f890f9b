"""One train step at RoBERTa-base shapes: LoRA against full fine-tuning, and against PEFT in PyTorch.

    python -m benchmarks.train_step [--batch=8] [--length=64] [--rounds=7] [--output=FILE.json]

Random weights, the same batches with every row full, AdamW, dropout 0.1, float32. FLOPs and bytes are XLA's
cost analysis of the unrolled step, since a scan's body is counted once; both the scanned and the unrolled
program are timed. PEFT runs transformers' RobertaForSequenceClassification with the same LoRA (r=8,
alpha=16, q and v) and a trained head, on the same number of threads.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import torch
from absl import flags
from flax import nnx

import lora_jax as lj
from benchmarks import peft_reference, random_batches, timing
from lora_jax import partition
from lora_jax.data.batch import Batch
from lora_jax.method import Method
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.summary import readable_bytes
from lora_jax.training import optimizer, step

_BATCH = flags.DEFINE_integer("batch", 8, "Rows.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens per row.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")

SIZES = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
METHODS = {
    "lora": lj.lora(r".*/attention/(query|value)", rank=8, alpha=16, head="head/.*"),
    "full": lj.full(head="head/.*"),
}


def our_step(
    method: Method, batch: Batch, unroll: int
) -> tuple[Callable[[], None], dict[str, float]]:
    """One compiled train step.

    Args:
      method: what trains.
      batch: of every step.
      unroll: layers per iteration of the scan.

    Returns:
      A call that runs the step, and its FLOPs, bytes, bytes of optimizer state and trained values.
    """
    config = EncoderConfig("roberta", **SIZES, position_offset=2, unroll=unroll)
    model = jax.jit(lambda: nnx.split(Classifier(config, 2, nnx.Rngs(0))))
    adapted = method.insert(nnx.merge(*model()), jax.random.key(1))
    labels = method.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    tx = optimizer.adamw(
        {p: labels[p] for p in trainable}, 1e-4, weight_decay=0.1, max_grad_norm=1.0
    )
    state = tx.init(trainable)
    train = step.make_train_step(structure, step.classification_loss, tx)
    key = jax.random.key(2)
    compiled = train.lower(trainable, state, frozen, batch, key).compile()  # type: ignore[attr-defined]
    cost = compiled.cost_analysis()
    held: dict[str, Any] = {"trainable": trainable, "state": state}

    def call() -> None:
        held["trainable"], held["state"], _, metrics = compiled(
            held["trainable"], held["state"], frozen, batch, key
        )
        metrics["loss"].block_until_ready()

    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    work = {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "optimizer_bytes": state_bytes,
        "trainable": partition.count(trainable),
    }
    return call, work


def peft_step(batch: Batch) -> Callable[[], None]:
    """A call that runs one step of PEFT's LoRA on transformers' RoBERTa, the same work."""
    import transformers

    config = transformers.RobertaConfig(**SIZES, num_labels=2)
    model: Any = transformers.RobertaForSequenceClassification(config)
    model, update = peft_reference.adapt(model, 1e-4, 0.1)
    ids = torch.tensor(batch.inputs.tokens, dtype=torch.long)
    labels = torch.tensor(batch.labels, dtype=torch.long)
    mask = torch.ones_like(ids)

    def call() -> None:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        update(loss)
        loss.item()

    return call


def main(_: list[str]) -> None:
    """Runs all contenders interleaved and prints the table."""
    batch = random_batches.classification(_BATCH.value, _LENGTH.value, SIZES["vocab_size"])
    depth = SIZES["num_hidden_layers"]
    calls, work = {}, {}
    for name, method in METHODS.items():
        calls[f"{name}, scanned"], _ = our_step(method, batch, 1)
        calls[f"{name}, unrolled"], work[name] = our_step(method, batch, depth)
    calls["peft lora (PyTorch)"] = peft_step(batch)
    seconds = timing.interleaved(calls, _ROUNDS.value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lora, full = work["lora"], work["full"]
    rows = [f"  {name:22s} {1e3 * value:8.0f} ms" for name, value in medians.items()]
    for key, unit in (("flops", 1e9), ("bytes", 2**30)):
        rows.append(
            f"  {key:16s} lora {lora[key] / unit:8.2f} G   full {full[key] / unit:8.2f} G   "
            f"ratio {lora[key] / full[key]:.3f}"
        )
    sizes = [readable_bytes(w["optimizer_bytes"]) for w in (lora, full)]
    rows.append(
        f"  optimizer state  lora {sizes[0]} for {lora['trainable']:,} values, "
        f"full {sizes[1]} for {full['trainable']:,}"
    )
    ratios = {
        "full / lora, scanned": timing.ratio(seconds, "full, scanned", "lora, scanned"),
        "full / lora, unrolled": timing.ratio(seconds, "full, unrolled", "lora, unrolled"),
        "peft / ours, scanned": timing.ratio(seconds, "peft lora (PyTorch)", "lora, scanned"),
        "peft / ours, unrolled": timing.ratio(seconds, "peft lora (PyTorch)", "lora, unrolled"),
    }
    rows += [
        f"  time {k}: {v['median']:.2f} ({v['min']:.2f} to {v['max']:.2f})"
        for k, v in ratios.items()
    ]
    record = {
        "seconds": seconds,
        "work": work,
        "ratios": ratios,
        "threads": torch.get_num_threads(),
    }
    shape = f"RoBERTa-base shapes, batch {_BATCH.value} x {_LENGTH.value}"
    timing.report(shape, rows, record, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
