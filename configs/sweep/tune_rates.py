"""A search for learning rate and rank on your own texts, see docs/tune.md.

    python -m experiments.sweep --config=configs/sweep/tune_rates.py:smollm2 --workdir=runs/rates \\
        --config.run.data.train=FILE.jsonl

Ranks 4 and 16, four learning rates, one seed: 8 runs as one program. Behind the colon a config of
configs/tune, `smollm2` or `small`, and, behind a comma, the form of its data (`smollm2,gsm8k`). The report is
a table of the held-out loss of every run. No samples are written. These are common values; the paper has no
such table.
"""

from __future__ import annotations

from configs.arguments import parse
from configs.sweep.common import ConfigDict, sweep_config
from configs.tune import small, smollm2
from configs.tune.common import DATA


def get_config(arg: str = "smollm2") -> ConfigDict:
    """Returns the config of `MODEL` or `MODEL,DATA`."""
    model, data = parse(arg, list(DATA), "data")
    models = {"small": small, "smollm2": smollm2}
    if model not in models:
        raise ValueError(f"unknown model {model!r}; known are {list(models)}")
    run = models[model].get_config(data)
    grid = {"method": {"rank": (4, 16)}, "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3), "seeds": (0,)}
    return sweep_config("tune", run, {"rates": grid})
