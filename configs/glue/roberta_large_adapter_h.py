"""RoBERTa-large with Adapter H on GLUE: Table 2, rows "RoB-large (AdptH)†", 6.0M and 0.8M parameters.

    python -m experiments.glue --config=configs/glue/roberta_large_adapter_h.py:TASK --workdir=runs/TASK

| TASK         | mnli    | sst2    | mrpc     | cola     | qnli    | qqp     | rte      | stsb     | average |
|--------------|---------|---------|----------|----------|---------|---------|----------|----------|---------|
| paper, small | 90.3±.3 | 96.3±.5 | 87.7±1.7 | 66.3±2.0 | 94.7±.2 | 91.5±.1 | 72.9±2.9 | 91.5±.5  | 86.4    |
| paper, large | 89.9±.5 | 96.2±.3 | 88.7±2.9 | 66.5±4.4 | 94.7±.2 | 92.1±.1 | 83.4±1.1 | 91.0±1.7 | 87.8    |

Dev sets, median of 5 seeds at their best epochs. The head trains too and is not counted.

Variants: `TASK` is `TASK,small`, size 8, 835,968 values (0.8M); `TASK,large` is size 64, 6,343,680
values (6.0M, in units of 2^20). Sizes, batch, epochs, learning rates, warm-up and length are Table
9's; weight decay 0 is the public MNLI script's, which has warm-up 0.1 and 8 GPUs and, for size 8, 5
epochs where Table 9 has 10.
"""

from configs.glue import common

_EPOCHS = (10, 5, 10, 10, 5, 20, 20, 10)
# Size, and Table 9's † columns in the order of common.TASKS.
_VARIANTS = {
    "small": (8, {"epochs": _EPOCHS, "learning_rate": (3e-4,) * 8}),
    "large": (64, {"epochs": _EPOCHS, "learning_rate": (3e-5, *(3e-4,) * 7)}),
}


def get_config(arg: str = "sst2") -> common.ConfigDict:
    """Returns the config of `TASK`, `TASK,small` or `TASK,large`."""
    return common.adapter_config(arg, "adapter_h", _VARIANTS)
