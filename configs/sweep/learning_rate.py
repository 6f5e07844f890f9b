"""A search for learning rates on one GLUE task: rank x learning rate x seed, all in one group.

    python -m experiments.sweep --config=configs/sweep/learning_rate.py:mrpc --workdir=runs/rates/mrpc \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

Ranks 1, 8, 64, five learning rates, 2 seeds: 30 runs on W_q and W_v. Alpha is the same at every rank, so the
branch's scale, alpha/r, falls as the rank rises; does one learning rate serve all ranks? The paper tuned
learning rates (Table 9) at rank 8 only and shows no such table.

| MODEL                         | learning rates                | in its own config                       |
|-------------------------------|-------------------------------|-----------------------------------------|
| minilm                        | 2e-4, 5e-4, 1e-3, 2e-3, 4e-3  | 2e-3 on sst2 and cola, 1e-3 on the rest |
| roberta_base                  | 1e-4, 2e-4, 5e-4, 1e-3, 2e-3  | 4e-4 or 5e-4                            |
| roberta_large                 | 1e-4, 2e-4, 5e-4, 1e-3, 2e-3  | 2e-4 to 4e-4                            |

Variants: `TASK,roberta_base`, `TASK,roberta_large` (no start from MNLI). Another grid:
--config.grids.rates.learning_rate="(1e-4,3e-4)" --config.grids.rates.method.rank="(4,)".
"""

from __future__ import annotations

from configs.sweep.common import ConfigDict, sweep_config
from configs.sweep.glue_runs import run_config

_RATES = {"minilm": (2e-4, 5e-4, 1e-3, 2e-3, 4e-3)}
_ROBERTA_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)


def get_config(arg: str = "mrpc") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,MODEL`."""
    run, model = run_config(arg)
    grid = {
        "method": {"rank": (1, 8, 64)},
        "learning_rate": _RATES.get(model, _ROBERTA_RATES),
        "seeds": (0, 1),
    }
    return sweep_config("glue", run, {"rates": grid})
