"""The question of Table 5 on one task: which attention weights, with one budget of values for all.

    python -m experiments.sweep --config=configs/sweep/table_5.py:sst2 --workdir=runs/table_5/sst2 \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

| paper, GPT-3 175B, 18M | W_q  | W_k  | W_v  | W_o  | W_q, W_k | W_q, W_v | all four |
|------------------------|------|------|------|------|----------|----------|----------|
| rank                   | 8    | 8    | 8    | 8    | 4        | 4        | 2        |
| WikiSQL (±0.5)         | 70.4 | 70.0 | 73.0 | 73.2 | 71.4     | 73.7     | 73.7     |
| MNLI (±0.1)            | 91.0 | 90.8 | 91.0 | 91.3 | 91.3     | 91.3     | 91.7     |

36,864 values in MiniLM-L6. Model and tasks differ from the paper's: only which weights do better can be
compared. Each set of weights is one group, whose seeds share a program. The same points as single runs:
configs/glue/minilm_weights.py (on mrpc with all examples here); their results: docs/measured.md.

Variants: `TASK,roberta_base` and `TASK,roberta_large`, as in configs/sweep/table_6.py. The paper's own data
on a decoder: `wikisql` and `mnli_text`, alone or with a model of configs/sweep/nlg_runs.py:

    python -m experiments.sweep --config=configs/sweep/table_5.py:wikisql,smollm2 \\
        --workdir=runs/table_5/wikisql --config.run.data.source=FOLDER

SmolLM2's keys and values are a third as wide as its queries, so there the sets differ in their budgets.
"""

from __future__ import annotations

from typing import Any

from configs.glue.minilm_weights import targets
from configs.sweep import nlg_runs
from configs.sweep.common import ConfigDict, sweep_config
from configs.sweep.glue_runs import run_config

_SETS = {8: ("q", "k", "v", "o"), 4: ("qk", "qv"), 2: ("qkvo",)}  # by rank


def get_config(arg: str = "sst2") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,MODEL`."""
    sets = tuple(weights for several in _SETS.values() for weights in several)
    if nlg_runs.is_dataset(arg):
        run, fused, _ = nlg_runs.run_config(arg)
        return sweep_config("nlg", run, *_grids(run, nlg_runs.labelled(sets, fused)))
    run, _ = run_config(arg)
    return sweep_config("glue", run, *_grids(run, {each: targets(each) for each in sets}))


def _grids(run: ConfigDict, labels: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A grid for each rank, and the labels of the targets."""
    grids = {
        f"rank_{rank}": {
            "method": {"targets": tuple(labels[weights] for weights in sets), "rank": (rank,)},
            "seeds": run.seeds,
        }
        for rank, sets in _SETS.items()
    }
    return grids, labels
