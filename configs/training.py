"""Fields that every training config has, with their defaults."""

from __future__ import annotations

from typing import Any

from ml_collections.config_dict import placeholder


def training_fields() -> dict[str, Any]:
    """Fields of optimisation, checkpoints and the log; an experiment's configs replace their values."""
    return {
        # Type of the frozen base and of all computation: float32 on CPU, bfloat16 on accelerators.
        # What trains (factors, heads, full fine-tuning's weights) and the optimizer are float32.
        "base_dtype": "auto",
        # Devices: copies of the model (data), splits of its weights (fsdp), splits of heads and
        # feed-forward units (model). -1: all that the other axes leave. A run may be resumed on another
        # mesh. The axis run splits the runs of a sweep (experiments.sweep).
        "mesh": {"run": 1, "data": -1, "fsdp": 1, "model": 1},
        "epochs": 5,
        "batch_size": 8,
        "accumulate": 1,  # batches per update
        "gradient_batches": 8,  # whose mean gradient starts factors with method.init=lora_ga
        "learning_rate": 2e-4,
        "warmup_ratio": 0.0,  # share of the updates; where it is 0, warmup_steps counts
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,  # 0 is off
        # epsilon "after": added to the root of the bias-corrected second moment, as AdamW is defined;
        # "before": added before the correction, as in the public GPT-2 code.
        # no_decay: pattern of paths that are exempt from weight decay.
        "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "epsilon": "after", "no_decay": ""},
        # Checks before training that merged and unmerged agree and that every factor has a gradient.
        "verify": True,
        "init_adapter": "",  # a run whose LoRA factors start this one
        "prng": "threefry2x32",  # dropout bits; "rbg" is faster on accelerators
        "log_every": 50,
        "checkpoint_every": 500,
    }


def decoder_fields(name: str) -> dict[str, Any]:
    """Fields of the model of a run on a decoder.

    Args:
      name: a folder, `package:NAME`, or a hub name.
    """
    return {
        "name": name,
        "base_format": "float",  # or the form that the frozen matrices are packed in
        "unroll": 1,
        "remat": "none",
        "attention": "auto",
    }


def order_fields() -> dict[str, Any]:
    """Fields of `data` that decide order and packing; the paper's runs leave them as they are."""
    return {
        "order_seed": placeholder(int),  # of the order of the examples; None: the seed of the run
        # Tokens per packed row; None: what each batch needs, 0: the longest that an example can be.
        "row_length": placeholder(int),
    }
