"""Texts of your own with RoBERTa-base, in the set-up of the paper's GLUE rows (Table 9).

    python -m experiments.classify --config=configs/classify/roberta_base.py --workdir=runs/mine \
        --config.data.train=reviews.csv

The model is a hub name; on a machine without a hub name its folder: --config.model.name=FOLDER. The
argument is the method: lora (r=8 on query and value, the learning rate of most tasks of Table 9), bitfit or
full, whose learning rates are ours. The epochs are ours too: Table 9 has 25 to 80. See docs/classify.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.classify.common import classify_config
from configs.glue.common import QUERY_VALUE

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "targets": QUERY_VALUE, "rank": 8, "alpha": 8.0},
    "bitfit": {"name": "bitfit"},
    "full": {"name": "full"},
}
_LEARNING_RATE = {"lora": 5e-4, "bitfit": 4e-4, "full": 2e-5}


def get_config(arg: str = "lora") -> ConfigDict:
    """Returns the config of a method; ValueError names the known ones."""
    if arg not in METHODS:
        raise ValueError(f"unknown method {arg!r}; known are {list(METHODS)}")
    config = classify_config("roberta-base", METHODS[arg])
    config.learning_rate, config.epochs = _LEARNING_RATE[arg], 10
    config.data.max_length = 512
    if arg == "bitfit":
        config.weight_decay = 0.0
    return config
