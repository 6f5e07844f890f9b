"""All methods on a part of E2E with the small GPT-2 that `experiments.pretrain` makes: for a laptop.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER
    python -m experiments.compare --config=configs/compare/small.py --workdir=runs/compare/small \\
        --config.run.data.source=FOLDER

Behind the colon the methods, `small.py:lora+dora+pissa`; without them all of configs/compare/common.py. One
epoch of 800 rows (100 updates), judged by the validation loss on 400, which tells methods apart that
accuracies on some hundred examples do not; rates are a factor of 3 higher than for larger models. AdaLoRA's
schedule fits these numbers, see configs/compare/glue.py. This is no row of the paper.
"""

from __future__ import annotations

from typing import Any

from configs.compare import common
from configs.nlg import small
from configs.sweep.common import ConfigDict

TARGETS = small.METHODS["lora_all"]["targets"]
# Keys and values, which are parts of one projection, and the inputs of the feed-forward block's second layer.
_IA3: dict[str, Any] = {
    "name": "ia3",
    "targets": {"qkv": {"parts": ("k", "v"), "fused": ("q", "k", "v")}, "down": {}},
    "feed_forward": "down",
}


def run_config() -> ConfigDict:
    """The config of one run, whose method and learning rate a comparison replaces."""
    run = small.get_config("e2e,lora_all")
    run.warmup_steps, run.warmup_ratio = 0, 0.1
    run.batch_size = 8
    run.label_smoothing = 0.0  # it is compared by the loss
    run.data.max_examples, run.data.max_eval_examples, run.data.decode_split = 800, 400, ""
    run.data.max_length = run.data.row_length = 128
    run.log_every = 10
    return run


def get_config(arg: str = "e2e") -> ConfigDict:
    """Returns the config of `e2e`, `METHOD+METHOD` or `e2e,METHOD+METHOD`.

    Raises:
      ValueError: an unknown method or another data set.
    """
    chosen = common.of_one_task(arg, "e2e")
    run = run_config()
    every = {**common.methods(TARGETS, common.updates(run)), "ia3": _IA3}
    return common.compare_config("nlg", run, every, chosen, higher=1)
