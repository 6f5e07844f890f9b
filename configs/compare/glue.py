"""All methods on one GLUE task with MiniLM: equal data and epochs, each at a learning rate of its own.

    python -m experiments.compare --config=configs/compare/glue.py:sst2 --workdir=runs/compare/sst2 \\
        --config.run.data.source=FOLDER_WITH_GLUE_TSV_FILES

Behind the colon the task, and after a comma the methods: `glue.py:sst2,lora+dora+pissa`; without them all of
configs/compare/common.py: 17 methods, 5 rates and 3 seeds are 255 runs. 2,000 training examples; one epoch,
on small tasks (mrpc, rte, stsb, cola) three. This is no row of the paper.

AdaLoRA's schedule fits these numbers; with others (--config.run.data.max_examples, epochs, batch_size) set
--config.grids.adalora.method too, or leave it out.
"""

from __future__ import annotations

from configs.compare import common
from configs.glue import minilm
from configs.glue.common import TASKS
from configs.sweep.common import ConfigDict

TARGETS = minilm.METHODS["lora_all"]["targets"]
_EXAMPLES = {"wnli": 635}  # of the training sets with fewer than 2,000


def run_config(task: str) -> ConfigDict:
    """The config of one run, whose method and learning rate a comparison replaces.

    Raises:
      ValueError: an unknown task.
    """
    if task not in (known := (*TASKS, "wnli")):
        raise ValueError(f"unknown task {task!r}; known are {list(known)}")
    run = minilm.get_config(f"{task},lora_all")
    run.batch_size = 32
    run.data.max_examples = 2_000
    run.data.row_length = 0  # data.max_length: runs with different orders share rows of one length
    run.log_every = 10
    return run


def get_config(arg: str = "sst2") -> ConfigDict:
    """Returns the config of `TASK` or `TASK,METHOD+METHOD`.

    Raises:
      ValueError: an unknown task or method.
    """
    task, chosen = common.split(arg, "sst2")
    run = run_config(task)
    every = common.methods(TARGETS, common.updates(run, _EXAMPLES.get(task, 0)))
    return common.compare_config("glue", run, every, chosen)
