"""Table 15: every method at several sizes, and LoRA with prefixes, on WikiSQL, MNLI or E2E (Figure 2).

    python -m experiments.sweep --config=configs/sweep/table_15.py:wikisql --workdir=runs/table_15/wikisql \\
        --config.run.data.source=FOLDER

The argument is `DATASET` or `DATASET,MODEL`, as of configs/sweep/nlg_runs.py. The 30 rows of the paper's
table have its sizes (l_p and l_i, bottlenecks, ranks); the numbers of values are those of the model at hand.
Every method has a grid of its own, so that --config.grids.lora.learning_rate="(1e-3,3e-3)" changes the rates
of one. The paper's numbers, of GPT-3 175B, stand beside the results in the page of experiments.report, and
with them the plot of Figure 2 and which methods are in the paper's order. E2E, which Table 15 has not, stands
there by BLEU and by loss:

    python -m experiments.sweep --config=configs/sweep/table_15.py:e2e --workdir=runs/table_15/e2e \\
        --config.run.data.source=FOLDER

More seeds, for intervals: --config.grids.lora.seeds="(0,1,2)", and so for the others.
"""

from __future__ import annotations

from configs.nlg import table_12
from configs.sweep import nlg_runs
from configs.sweep.common import ConfigDict, sweep_config


def get_config(arg: str = "wikisql") -> ConfigDict:
    """Returns the config of `DATASET` or `DATASET,MODEL`."""
    run, fused, rates = nlg_runs.run_config(arg)
    alpha = {"alpha": run.method.alpha} if "alpha" in run.method else {}  # for which the rates are
    rows = {
        label: {**method, **(alpha if method["name"] == "lora" else {})}
        for label, method in table_12.table_15(fused).items()
    }
    names = dict.fromkeys(method["name"] for method in rows.values())
    grids = {
        name: {
            "method": tuple(method for method in rows.values() if method["name"] == name),
            "learning_rate": (rates[name],),
            "seeds": run.seeds,
        }
        for name in names
    }
    return sweep_config("nlg", run, grids, rows)
