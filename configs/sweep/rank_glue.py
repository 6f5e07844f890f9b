"""LoRA's rank on one GLUE task, W_q and W_v: Table 6's question on the encoders of Table 2.

    python -m experiments.sweep --config=configs/sweep/rank_glue.py:mrpc --workdir=runs/ranks/mrpc \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

Eight runs of MiniLM-L6 in one program: ranks 1, 2, 4, 8, 16, 64 with seed 0, and seeds 1 and 2 at rank 8
for the spread (the project's benchmark of sweeps). No row of the paper, which asks this of GPT-3 175B:

| paper, Table 6, W_q and W_v | r=1  | 2    | 4    | 8    | 64   |
|-----------------------------|------|------|------|------|------|
| WikiSQL (±0.5)              | 73.4 | 73.3 | 73.7 | 73.8 | 73.5 |
| MNLI (±0.1)                 | 91.3 | 91.4 | 91.3 | 91.6 | 91.4 |

Variants: `TASK,roberta_base` and `TASK,roberta_large` are the LoRA rows of Table 2 at ranks 1, 2, 4, 8, 64,
each with 5 seeds; alpha stays Table 9's. Rank 8 is the paper's own (its scores are in the heads of
configs/glue/roberta_base_lora.py and roberta_large_lora.py), except on mrpc, rte and stsb: there the paper
starts from the MNLI factors. Those have one rank, which the ranks of a sweep cannot share, so init_adapter is
empty and every run starts anew. `TASK,minilm` is `TASK`.

More seeds at every rank: --config.grids.ranks.seeds="(0,1,2)".
"""

from __future__ import annotations

from typing import Any

from configs.sweep.common import ConfigDict, sweep_config
from configs.sweep.glue_runs import run_config


def get_config(arg: str = "mrpc") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,MODEL`."""
    run, model = run_config(arg)
    grids: dict[str, dict[str, Any]]
    if model == "minilm":
        grids = {
            "ranks": {"method": {"rank": (1, 2, 4, 8, 16, 64)}, "seeds": (0,)},
            "seeds": {"method": {"rank": (8,)}, "seeds": (1, 2)},
        }
    else:
        grids = {"ranks": {"method": {"rank": (1, 2, 4, 8, 64)}, "seeds": run.seeds}}
    return sweep_config("glue", run, grids)
