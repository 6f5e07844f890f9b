"""The validation loss that PEFT reaches on the rows, batches and rates of one of our runs on E2E.

    python -m benchmarks.decoder_quality --run=RUN --data=FOLDER [--output=FILE.json]

RUN is a finished run of `configs/nlg/smollm2.py:e2e,lora` (or lora_all): its record says the rows, their
order, the learning rate, warm-up, decay, label smoothing and dropout. PEFT in PyTorch trains once over the
same batches, and its loss of the same validation rows stands beside ours. Initial values and dropout
differ, as between seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from absl import app, flags
from tqdm import tqdm

from benchmarks import timing, torch_decoders
from lora_jax.data import completions, data_to_text, tokenizers
from lora_jax.data.batches import TrainingBatches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.models import hub
from lora_jax.reading import read_object

_RUN = flags.DEFINE_string("run", None, "Finished run of ours.", required=True)
_DATA = flags.DEFINE_string("data", None, "Folder with the E2E files.", required=True)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_PUBLISHED = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "gate": "gate_proj",
    "up": "up_proj", "down": "down_proj",
}  # fmt: skip
_NO_LABEL = -100


def adapted(config: dict[str, Any]) -> peft.PeftModel:
    """SmolLM2 with PEFT's LoRA as the run's method says."""
    method = config["method"]
    names = [theirs for ours, theirs in _PUBLISHED.items() if re.search(ours, method["targets"])]
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=method["rank"], lora_alpha=method["alpha"], target_modules=names,
        lora_dropout=method["dropout"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = torch_decoders.load(hub.find(config["model"]["name"]))
    return peft.get_peft_model(model, lora)


def batches_of(rows: TokenisedPairs, config: dict[str, Any], width: int) -> Iterator[Sequence[int]]:
    """The rows of every batch of the run's only epoch, in its order."""
    data = TrainingBatches(
        rows, batch_size=config["batch_size"], epochs=1, seed=config["seeds"][0],
        hidden_size=width, max_length=128,
    )  # fmt: skip
    order = data.order(0, config["seeds"][0])
    for number in range(data.per_epoch):
        yield [int(i) for i in order[number]]


def losses(model: Any, rows: TokenisedPairs, chosen: Sequence[int], smoothing: float) -> Any:
    """The summed loss of the counted tokens of some rows, and their number."""
    longest = max(len(rows.ids[i]) for i in chosen)
    ids = torch.zeros(len(chosen), longest, dtype=torch.long)
    labels = torch.full((len(chosen), longest), _NO_LABEL)
    mask = torch.zeros(len(chosen), longest, dtype=torch.long)
    for place, i in enumerate(chosen):
        tokens = torch.tensor(np.asarray(rows.ids[i])).long()
        ids[place, : len(tokens)], mask[place, : len(tokens)] = tokens, 1
        labels[place, rows.starts[i] : len(tokens)] = tokens[rows.starts[i] :]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    total = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=_NO_LABEL,
        label_smoothing=smoothing, reduction="sum",
    )  # fmt: skip
    return total, int((labels[:, 1:] != _NO_LABEL).sum())


def train(model: peft.PeftModel, rows: TokenisedPairs, config: dict[str, Any], width: int) -> None:
    """One epoch with linear warm-up and decay, as the run's."""
    groups = list(batches_of(rows, config, width))
    trainable = [p for p in model.parameters() if p.requires_grad]
    rate, adam = config["learning_rate"], config["adam"]
    tx = torch.optim.AdamW(
        trainable, rate, (adam["b1"], adam["b2"]), adam["eps"], config["weight_decay"]
    )
    steps = len(groups)
    warm = math.ceil(config["warmup_ratio"] * steps)
    scale = lambda n: n / warm if n < warm else (steps - n) / (steps - warm)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(tx, scale)
    model.train()
    for chosen in tqdm(groups, desc="peft", unit="step"):
        total, count = losses(model, rows, chosen, config["label_smoothing"])
        (total / count).backward()
        tx.step()
        schedule.step()
        tx.zero_grad()


def main(_: list[str]) -> None:
    """Trains, evaluates, prints both losses."""
    record = read_object(Path(_RUN.value) / "result.json").values
    config: Any = record["config"]
    folder = hub.find(config["model"]["name"])
    sizes = hub.read_decoder_config(folder)
    tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, sizes.vocab_size)
    limits = {"train": config["data"]["max_examples"], "valid": config["data"]["max_eval_examples"]}
    rows = {
        split: completions.tokenise_pairs(
            data_to_text.read("e2e", split, _DATA.value).take(count), tokenizer, 512
        )
        for split, count in limits.items()
    }
    model = adapted(config)
    train(model, rows["train"], config, sizes.width)
    model.eval()
    found = {"loss": 0.0, "tokens": 0}
    with torch.inference_mode():
        for start in range(0, len(rows["valid"].ids), 16):
            chosen = range(start, min(start + 16, len(rows["valid"].ids)))
            total, count = losses(model, rows["valid"], chosen, 0.0)
            found["loss"] += float(total)
            found["tokens"] += count
    ours = record["seeds"][str(config["seeds"][0])]["best"]["loss"]
    theirs = found["loss"] / found["tokens"]
    lines = [f"  validation loss: ours {ours:.4f}, peft {theirs:.4f}"]
    values = {"ours": ours, "peft": theirs, "tokens": found["tokens"], "config": config}
    timing.report(f"E2E, {_RUN.value}", lines, values, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
