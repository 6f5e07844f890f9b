"""What the configs of experiments.tune share: fields, LoRA on all linear layers, formats of public data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.training import decoder_fields, order_fields, training_fields

# Taori et al. 2023 (Stanford Alpaca); the part of the input is left out where there is none.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}[[\n\n### Input:\n{input}]]\n\n### Response:\n"
)
# Fields that data of a known form set; FILE stands for --config.data.train.
DATA: Mapping[str, Mapping[str, Any]] = {
    "": {},
    # instruction, input, output: 1,000 rows to train on of LLMs-from-scratch's 1,100, 100 held out.
    "instructions": {
        "data.template": ALPACA, "data.completion": "output", "data.held_out": 100, "data.test": "held_out",
        "metric": "exact_match",
    },
    # Cobbe et al. 2021: question, and an answer that ends in `#### N`. Its own test file: --config.data.test.
    "gsm8k": {
        "data.template": "Question: {question}\nAnswer:\n", "data.completion": "answer",
        "data.held_out": 0.02, "metric": "last_number", "decode.max_tokens": 256,
    },
}  # fmt: skip


def lora(rank: int = 16, alpha: float = 32.0) -> dict[str, Any]:
    """LoRA on all linear layers of the blocks, whatever the model."""
    return {"name": "lora", "targets": "all-linear", "rank": rank, "alpha": alpha, "dropout": 0.0}


METHODS = ("lora", "dora", "full", "bitfit", "top2", "adapter_h", "adapter_l", "prefix_layer")


def parse(argument: str) -> tuple[str, str]:
    """Splits `data`, `method` or `data,method` into the two; "" and `lora` where they are not named.

    Raises:
      ValueError: a word that is neither, or two of a kind.
    """
    words = [word for word in argument.split(",") if word]
    for word in words:
        if word not in DATA and word not in METHODS:
            known = f"known are the data {', '.join(filter(None, DATA))}, the methods {', '.join(METHODS)}"
            raise ValueError(f"unknown data or method {word!r} in {argument!r}; {known}")
    data, method = ([word for word in words if word in kind] for kind in (DATA, METHODS))
    if len(data) > 1 or len(method) > 1:
        raise ValueError(f"{argument!r} names two of a kind; give one form of data and one method")
    return "".join(data), method[0] if method else "lora"


def tune_config(
    model: str,
    argument: str,
    methods: Mapping[str, Mapping[str, Any]],
    rates: Mapping[str, float],
) -> ConfigDict:
    """All fields, with common values of instruction tuning with LoRA.

    Args:
      model: a folder, `package:NAME`, or a hub name.
      argument: see `parse`.
      methods: arguments of those of `METHODS` that are not LoRA's, as the model needs them.
      rates: their learning rates, and that of `lora`.

    Raises:
      ValueError: see `parse`.
    """
    data, name = parse(argument)
    if name in ("lora", "dora"):
        method, rate = {**lora(), **({"magnitude": True} if name == "dora" else {})}, rates["lora"]
    else:
        method, rate = dict(methods[name]), rates[name]
    config = ConfigDict(
        {
            **training_fields(),
            "model": decoder_fields(model),
            "method": method,
            "loftq": False,
            "seeds": (0,),
            "epochs": 3,  # 0: no adaptation; the model is decoded as it is
            "batch_size": 8,
            "learning_rate": rate,
            "warmup_ratio": 0.03,
            "max_grad_norm": 1.0,
            "label_smoothing": 0.0,
            "metric": "",
            "data": {
                **order_fields(),
                "train": "train.jsonl",
                "validation": "",
                "held_out": 0.05,
                "split_seed": 0,
                "test": "",
                "max_examples": 0,
                "max_eval_examples": 0,
                "max_prompts": 0,
                "max_length": 512,
                "long": "cut",
                "loss": "completions",
                "format": "auto",
                "messages": "messages",
                "template": "{prompt}",
                "completion": "completion",
                "separator": "",
                "system": "",
                "chat_template": "",
            },
            "samples": {"count": 3, "max_tokens": 64},
            "decode": {
                "method": "greedy",
                "beams": 4,
                "length_penalty": 0.9,
                "no_repeat_ngram": 0,
                "temperature": 0.7,
                "top_k": 0,
                "top_p": 0.95,
                "max_tokens": 128,
                "batch_size": 16,
                "seed": 0,
            },
            "eval_only": False,
            "adapter": "",  # with eval_only: the run to evaluate
        }
    )
    config.update_from_flattened_dict(dict(DATA[data]))
    return config
