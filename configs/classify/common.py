"""What all configs for texts of your own share: fields with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.glue.common import glue_config


def classify_config(model: str, method: Mapping[str, Any]) -> ConfigDict:
    """All fields.

    Args:
      model: a folder, `package:NAME`, or a hub name.
      method: name of a method and its arguments, see `lora_jax.methods`.
    """
    config = glue_config("classify", model, method)
    del config.data.source, config.data.balanced
    config.labels = "classes"  # or numbers, for regression
    config.headline = (
        "auto"  # the score that chooses the best epoch: accuracy, or pearson for numbers
    )
    config.seeds = (0,)
    config.epochs, config.batch_size = 5, 16
    config.data.update(
        {
            "train": (),  # the file of your table: --config.data.train=FILE.csv
            "held_out": (),  # another file; without one a share of the training file is held out
            "held_out_share": 0.1,
            "split_seed": 0,
            "text": "text",  # names of the columns
            "pair": "",
            "label": "label",
            "classes": (),  # those of the training file, sorted
            "max_length": 128,
        }
    )
    return config
