"""RoBERTa-base with AdapterDrop on GLUE: Table 2, rows "RoB-base (AdptD)*", 0.3M and 0.9M parameters.

    python -m experiments.glue --config=configs/glue/roberta_base_adapter_d.py:TASK --workdir=runs/TASK

| TASK         | mnli    | sst2    | mrpc     | cola    | qnli    | qqp     | rte      | stsb    | average |
|--------------|---------|---------|----------|---------|---------|---------|----------|---------|---------|
| paper, small | 87.1±.0 | 94.2±.1 | 88.5±1.1 | 60.8±.4 | 93.1±.1 | 90.2±.0 | 71.5±2.7 | 89.7±.3 | 84.4    |
| paper, large | 87.3±.1 | 94.7±.3 | 88.4±.1  | 62.6±.9 | 93.0±.2 | 90.6±.0 | 75.9±2.2 | 90.3±.1 | 85.4    |

Variants: `TASK` is `TASK,small`, adapters in the last 4 layers, 298,176 values; `TASK,large` has them
in all 12, which is Adapter P, 894,528 values. The head trains too and is not counted. Size 48 and the
layers are inferred from the totals only (size 16 in all 12 layers, 304,320, would give 0.3M as well).

The paper takes these rows from prior work (Rücklé et al. 2021) and gives no hyperparameters for them.
Those below are our choice, not tuned: learning rate 1e-4 and 20 epochs as on AdapterHub's cards of Adapter P
for BERT, batch 32, warm-up 6%, no weight decay, length 128. No source at hand confirms them for these rows.
"""

from typing import Any

from configs.glue import common

_METHODS: dict[str, dict[str, Any]] = {
    "small": {"name": "adapter_d", "size": 48, "layers": 4},
    "large": {"name": "adapter_p", "size": 48},
}


def get_config(arg: str = "sst2") -> common.ConfigDict:
    """Returns the config of `TASK`, `TASK,small` or `TASK,large`."""
    task, variant = common.parse(arg, tuple(_METHODS))
    config = common.glue_config(task, "roberta-base", _METHODS[variant])
    config.learning_rate = 1e-4
    config.epochs = 20
    config.weight_decay = 0.0
    config.data.max_length = 128
    return config
