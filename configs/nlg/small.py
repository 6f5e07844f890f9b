"""A small GPT-2, pre-trained by `experiments.pretrain`, for machines without a hub.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER
    python -m experiments.nlg --config=configs/nlg/small.py:e2e,lora --workdir=runs/small_e2e_lora \\
        --config.data.source=FOLDER

Methods: lora (r = 4 on q and v, as the paper), lora_all (r = 16 on all four matrices of a layer),
full, none (the pre-trained model is decoded as it is). No row of the paper: learning rates and epochs
are ours, everything else is Table 11's. What it gave: docs/measured.md.
"""

from typing import Any

from configs.nlg import common

_LORA_ALL: dict[str, Any] = {
    "name": "lora",
    "targets": r".*/(qkv|attention/output|up|down)",
    "rank": 16,
    "alpha": 32.0,
}
_METHODS: dict[str, dict[str, Any]] = {
    "lora": common.LORA,
    "lora_all": _LORA_ALL,
    "full": {"name": "full"},
    "none": common.LORA,  # untrained factors change nothing
}
_LEARNING_RATE = {"lora": 5e-3, "lora_all": 2e-3, "full": 5e-4, "none": 0.0}


def get_config(arg: str = "e2e,lora") -> common.ConfigDict:
    """Returns the config of `dataset,method`."""
    dataset, _, method = arg.partition(",")
    method = method or "lora"
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r} in {arg!r}; known are {sorted(_METHODS)}")
    config = common.nlg_config(dataset, "runs/small_gpt2/model", _METHODS[method])
    config.seeds = (0,)
    config.epochs = 0 if method == "none" else 1
    config.batch_size = 16
    config.warmup_steps = 200
    config.learning_rate = _LEARNING_RATE[method]
    return config
