"""The learning rate of each method on E2E with SmolLM2: what configs/nlg/smollm2.py has was chosen so.

    python -m experiments.sweep --config=configs/sweep/smollm2_rates.py:METHOD \\
        --workdir=runs/smollm2_rates/METHOD --config.run.data.source=FOLDER

METHOD is one of configs/nlg/smollm2.py. Four rates with one seed on a small part of E2E, judged by the
validation loss; 20 inputs are decoded. This is no table of the paper.
"""

from __future__ import annotations

from configs.nlg import smollm2
from configs.sweep.common import ConfigDict, sweep_config

RATES = {
    "full": (1e-5, 3e-5, 1e-4, 3e-4),
    "top2": (1e-4, 3e-4, 1e-3, 3e-3),
    "prefix_layer": (3e-3, 1e-2, 3e-2, 1e-1),
    "bitfit": (1e-3, 3e-3, 1e-2, 3e-2),
}
_OTHERS = (3e-4, 1e-3, 3e-3, 1e-2)


def get_config(arg: str = "lora") -> ConfigDict:
    """Returns the config of a method."""
    run = smollm2.get_config(f"e2e,{arg}")
    run.data.max_examples, run.data.max_eval_examples, run.data.max_prompts = 800, 160, 20
    # Prefixes come on top of the text.
    run.data.row_length = 160 if arg.startswith("prefix") else 128
    grid = {"learning_rate": RATES.get(arg, _OTHERS), "seeds": (0,)}
    return sweep_config("nlg", run, {"rates": grid})
