"""What "LoRA Without Regret" (2025, doi 10.64434/tml.20250929) says of LoRA, in small, on MiniLM.

    python -m experiments.compare --config=configs/compare/regret.py:sst2 --workdir=runs/regret/sst2 \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

LoRA with alpha 32 on all linear layers at ranks 1 to 128 (`lora` is rank 8), on attention alone at as many
trained values (rank 18) and at rank 8, and full fine-tuning, seven learning rates and three seeds each: 189
runs. The page's column `optimum` says by how much LoRA's best rate lies above that of full fine-tuning
(about ten times, they say, whatever the rank), and `difference` whether attention alone loses.

Batch sizes and short runs are comparisons of their own: `--config.run.batch_size=128`, and
`--config.run.data.max_examples=320` (10 updates). Arguments: the task, and after a comma the names of some.
"""

from __future__ import annotations

from typing import Any

from configs.compare import common
from configs.compare.glue import run_config
from configs.glue import minilm
from configs.sweep.common import ConfigDict, sweep_config

_ALL = minilm.METHODS["lora_all"]["targets"]
_ATTENTION = r".*/attention/(query|key|value|output)"
_RANKS = (1, 4, 16, 64, 128)
# Factors of about 3; full fine-tuning's begin a factor of 10 lower.
_FULL = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_LORA = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def _lora(targets: str, rank: int) -> dict[str, Any]:
    return {"name": "lora", "targets": targets, "rank": rank, "alpha": 32.0}


METHODS: dict[str, dict[str, Any]] = {
    "lora": _lora(_ALL, 8),
    **{f"rank_{rank}": _lora(_ALL, rank) for rank in _RANKS},
    "attention_8": _lora(_ATTENTION, 8),
    "attention_18": _lora(
        _ATTENTION, 18
    ),  # 18 * 4 * 768 values a layer, as 8 * (4 * 768 + 2 * 1920)
    "full": {"name": "full"},
}


def get_config(arg: str = "sst2") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,NAME+NAME`.

    Raises:
      ValueError: an unknown task or name.
    """
    task, _, named = arg.partition(",")
    chosen = named.split("+") if named else list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r} in {arg!r}; known are {list(METHODS)}")
    run = run_config(task)
    run.method, run.learning_rate = dict(METHODS["lora"]), 1e-3
    grids = {
        name: {
            "method": (METHODS[name],),
            "learning_rate": _FULL if name == "full" else _LORA,
            "seeds": common.SEEDS,
        }
        for name in chosen
    }
    return sweep_config("glue", run, grids, METHODS)
