"""A small GPT-2, pre-trained by `experiments.pretrain`, for machines without a hub.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER
    python -m experiments.nlg --config=configs/nlg/small.py:e2e,lora --workdir=runs/small_e2e_lora \\
        --config.data.source=FOLDER

Methods: lora (r = 4 on q and v, as the paper), lora_all (r = 16 on all four matrices of a layer),
adapter_h, adapter_p, adapter_l, prefix_layer (about LoRA's number of values), adapter_d (in the upper two
layers), prefix_embed, lora_prefix_embed, lora_prefix_layer, bitfit, top2, full, none (the pre-trained
model is decoded as it is). This is no row of the paper: learning rates and epochs are ours, everything
else is Table 11's. Results: docs/measured.md.
"""

from typing import Any

from configs.nlg import common

METHODS: dict[str, dict[str, Any]] = {
    "lora": common.LORA,
    "lora_all": {
        "name": "lora", "targets": r".*/(qkv|attention/output|up|down)", "rank": 16, "alpha": 32.0
    },
    "adapter_h": {"name": "adapter_h", "size": 4},
    "adapter_p": {"name": "adapter_p", "size": 8},
    "adapter_l": {"name": "adapter_l", "size": 8},
    "adapter_d": {"name": "adapter_d", "size": 8, "layers": 2},
    "prefix_embed": {"name": "prefix_embed", "prefix": 16, "infix": 4},
    "prefix_layer": {"name": "prefix_layer", "prefix": 12, "infix": 4},
    "lora_prefix_embed": {**common.LORA, "plus": {"name": "prefix_embed", "prefix": 8, "infix": 4}},
    "lora_prefix_layer": {**common.LORA, "plus": {"name": "prefix_layer", "prefix": 8, "infix": 4}},
    "bitfit": {"name": "bitfit"},
    "top2": {"name": "top_layers", "count": 2},
    "full": {"name": "full"},
    "none": common.LORA,  # untrained factors change nothing
}  # fmt: skip
LEARNING_RATE = {
    "lora": 5e-3, "lora_all": 2e-3, "lora_prefix_embed": 5e-3, "lora_prefix_layer": 5e-3,
    "adapter_h": 5e-3, "adapter_p": 5e-3, "adapter_l": 5e-3, "adapter_d": 5e-3,
    "prefix_embed": 2e-2, "prefix_layer": 2e-2,
    "bitfit": 5e-3, "top2": 1e-3, "full": 5e-4, "none": 0.0,
}  # fmt: skip


def get_config(arg: str = "e2e,lora") -> common.ConfigDict:
    """Returns the config of `dataset,method`."""
    dataset, method = common.parse(arg, list(METHODS), "method")
    config = common.nlg_config(dataset, "runs/small_gpt2/model", METHODS[method])
    config.seeds = (0,)
    config.epochs = 0 if method == "none" else 1
    config.batch_size = 16
    config.warmup_steps = 200
    config.learning_rate = LEARNING_RATE[method]
    return config
