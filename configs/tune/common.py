"""What the configs of experiments.tune share: fields, LoRA on all linear layers, formats of public data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.training import order_fields, training_fields

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


def tune_config(model: str, method: Mapping[str, Any], data: str = "") -> ConfigDict:
    """All fields, with common values of instruction tuning with LoRA.

    Args:
      model: a folder, `package:NAME`, or a hub name.
      method: name of a method and its arguments, see `lora_jax.methods`.
      data: a key of `DATA`.

    Raises:
      ValueError: unknown data.
    """
    if data not in DATA:
        raise ValueError(f"unknown data {data!r}; known are {[name for name in DATA if name]}")
    config = ConfigDict(
        {
            **training_fields(),
            "model": {"name": model, "base_format": "float", "unroll": 1, "remat": "none"},
            "method": dict(method),
            "seeds": (0,),
            "epochs": 3,  # 0: no adaptation; the model is decoded as it is
            "batch_size": 8,
            "learning_rate": 2e-4,
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
