"""What "LoRA Without Regret" (2025, doi 10.64434/tml.20250929) says of LoRA, in small.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER
    python -m experiments.compare --config=configs/compare/regret.py:e2e --workdir=runs/regret/main \\
        --config.run.data.source=FOLDER

LoRA with alpha 32 on all linear layers at ranks 1 to 128 (`lora` is rank 8), on all, on attention alone and
on the feed-forward blocks alone at as many trained values, and full fine-tuning: seven learning rates and
three seeds each. The task is E2E with a small GPT-2 (see configs/compare/small.py), or one of GLUE with
MiniLM (`regret.py:sst2`; a loss tells more than an accuracy does).

Batch sizes and short runs are comparisons of their own, in folders of their own:
`--config.run.batch_size=64`, and `--config.run.data.max_examples=80` (10 updates of E2E's 8 rows). All are
judged by

    python -m experiments.claims --main=runs/regret/main --large_batch=DIR --short=DIR --output=DIR

Arguments: the task, and after a comma the names of some.
"""

from __future__ import annotations

from typing import Any

from configs.compare import common, glue, small
from configs.sweep.common import ConfigDict, sweep_config

_RANKS = (1, 4, 16, 64, 128)
# Factors of about 3; full fine-tuning's begin a factor of 10 lower.
_FULL = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_LORA = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_FEED_FORWARD = r".*/(up|down)"
# Layers and rank of three that train about as many values, by model. Of the small GPT-2, d wide, a rank has
# 16 d values in a layer, 6 d of them in attention; of MiniLM 18 d and 8 d.
_EQUAL: dict[str, dict[str, tuple[str, int]]] = {
    "small": {
        "all_15": (small.TARGETS, 15),
        "attention_40": (r".*/(qkv|attention/output)", 40),
        "mlp_24": (_FEED_FORWARD, 24),
    },
    "minilm": {
        "all_20": (glue.TARGETS, 20),
        "attention_45": (r".*/attention/(query|key|value|output)", 45),
        "mlp_36": (_FEED_FORWARD, 36),
    },
}


def methods(model: str) -> dict[str, dict[str, Any]]:
    """What is compared, by name.

    Args:
      model: `small` or `minilm`.
    """
    targets = {"small": small.TARGETS, "minilm": glue.TARGETS}[model]
    return {
        "lora": _lora(targets, 8),
        **{f"rank_{rank}": _lora(targets, rank) for rank in _RANKS},
        **{name: _lora(*own) for name, own in _EQUAL[model].items()},
        "full": {"name": "full"},
    }


def _lora(targets: str, rank: int) -> dict[str, Any]:
    return {"name": "lora", "targets": targets, "rank": rank, "alpha": 32.0}


def get_config(arg: str = "e2e") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,NAME+NAME`.

    Raises:
      ValueError: an unknown task or name.
    """
    task, _, named = arg.partition(",")
    on_e2e = task == "e2e"
    every = methods("small" if on_e2e else "minilm")
    chosen = named.split("+") if named else list(every)
    if unknown := [name for name in chosen if name not in every]:
        raise ValueError(f"unknown method {unknown[0]!r} in {arg!r}; known are {list(every)}")
    run = small.run_config() if on_e2e else glue.run_config(task)
    run.method, run.learning_rate = dict(every["lora"]), 1e-3
    grids = {
        name: {
            "method": (every[name],),
            "learning_rate": _FULL if name == "full" else _LORA,
            "seeds": common.SEEDS,
        }
        for name in chosen
    }
    return sweep_config("nlg" if on_e2e else "glue", run, grids, every)
