"""RoBERTa-large with Adapter P on GLUE: Table 2, rows "RoB-large (AdptP)†", 3.0M and 0.8M parameters.

    python -m experiments.glue --config=configs/glue/roberta_large_adapter_p.py:TASK --workdir=runs/TASK

| TASK         | mnli    | sst2    | mrpc     | cola     | qnli    | qqp     | rte      | stsb    | average |
|--------------|---------|---------|----------|----------|---------|---------|----------|---------|---------|
| paper, small | 90.5±.3 | 96.6±.2 | 89.7±1.2 | 67.8±2.5 | 94.8±.3 | 91.7±.2 | 80.1±2.9 | 91.9±.4 | 87.9    |
| paper, large | 90.2±.3 | 96.1±.3 | 90.2±.7  | 68.3±1.0 | 94.8±.2 | 91.9±.1 | 83.8±2.9 | 92.1±.7 | 88.4    |

Dev sets, median of 5 seeds at their best epochs. The head trains too and is not counted.

Variants: `TASK` is `TASK,small`, size 16, 811,392 values (0.8M); `TASK,large` is size 64, 3,171,840
values (3.0M, in units of 2^20). Sizes, batch, epochs, learning rates, warm-up and length are Table
9's; weight decay 0 is the public MNLI script's, which has warm-up 0.1 and 8 GPUs.
"""

from configs.glue import common

# Size, and Table 9's † columns in the order of common.TASKS.
_VARIANTS = {
    "small": (16, {"epochs": (5, 20, 20, 20, 10, 20, 20, 20), "learning_rate": (3e-4,) * 8}),
    "large": (
        64,
        {
            "epochs": (10, 20, 20, 20, 10, 20, 20, 20),
            "learning_rate": (3e-5, 3e-5, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4),
        },
    ),
}


def get_config(arg: str = "sst2") -> common.ConfigDict:
    """Returns the config of `TASK`, `TASK,small` or `TASK,large`."""
    return common.adapter_config(arg, "adapter_p", _VARIANTS)
