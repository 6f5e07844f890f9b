"""The question of Table 6 on one task: ranks 1 to 64 of W_q, of W_q and W_v, and of all four weights.

    python -m experiments.sweep --config=configs/sweep/table_6.py:sst2 --workdir=runs/table_6/sst2 \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

| paper, GPT-3 175B | weights            | r=1  | 2    | 4    | 8    | 64   |
|-------------------|--------------------|------|------|------|------|------|
| WikiSQL (±0.5)    | W_q                | 68.8 | 69.6 | 70.5 | 70.4 | 70.0 |
|                   | W_q, W_v           | 73.4 | 73.3 | 73.7 | 73.8 | 73.5 |
|                   | W_q, W_k, W_v, W_o | 74.1 | 73.7 | 74.0 | 74.0 | 73.9 |
| MNLI (±0.1)       | W_q                | 90.7 | 90.9 | 91.1 | 90.7 | 90.7 |
|                   | W_q, W_v           | 91.3 | 91.4 | 91.3 | 91.6 | 91.4 |
|                   | W_q, W_k, W_v, W_o | 91.2 | 91.7 | 91.7 | 91.5 | 91.4 |

Model and tasks differ from the paper's: only which weights and ranks do better can be compared. Ranks are 1,
2, 4, 8 and 64. The three sets of weights are three groups, one after another; the 15 runs of a set (5 ranks,
3 seeds) share programs. The same points as single runs: configs/glue/minilm_weights.py (on mrpc with all
examples here); their results on sst2 and stsb: docs/measured.md.

Variants: `TASK,roberta_base` and `TASK,roberta_large` have Table 9's values, its alpha at every rank and 5
seeds, all without the start from MNLI that the paper has on mrpc, rte and stsb: those factors are of one rank
and one set of weights. The paper's own data on a decoder: `wikisql` and `mnli_text`, alone or with a model of
configs/sweep/nlg_runs.py:

    python -m experiments.sweep --config=configs/sweep/table_6.py:wikisql,smollm2 \\
        --workdir=runs/table_6/wikisql --config.run.data.source=FOLDER
"""

from __future__ import annotations

from configs.glue.minilm_weights import targets
from configs.sweep import nlg_runs
from configs.sweep.common import ConfigDict, sweep_config
from configs.sweep.glue_runs import run_config

WEIGHTS = ("q", "qv", "qkvo")


def get_config(arg: str = "sst2") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,MODEL`."""
    if nlg_runs.is_dataset(arg):
        run, fused, _ = nlg_runs.run_config(arg)
        experiment, labels = "nlg", nlg_runs.labelled(WEIGHTS, fused)
    else:
        run, _ = run_config(arg)
        experiment, labels = "glue", {weights: targets(weights) for weights in WEIGHTS}
    method = {"targets": tuple(labels.values()), "rank": (1, 2, 4, 8, 64)}
    return sweep_config(experiment, run, {"ranks": {"method": method, "seeds": run.seeds}}, labels)
