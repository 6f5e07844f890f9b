"""RoBERTa-base with BitFit on GLUE: Table 2, row "RoB-base (BitFit)*", 0.1M parameters.

    python -m experiments.glue --config=configs/glue/roberta_base_bitfit.py:TASK --workdir=runs/TASK

| TASK  | mnli | sst2 | mrpc | cola | qnli | qqp  | rte  | stsb | average |
|-------|------|------|------|------|------|------|------|------|---------|
| paper | 84.7 | 93.7 | 92.7 | 62.0 | 91.8 | 84.0 | 81.5 | 90.8 | 85.2    |

102,144 bias values and the head. The paper takes this row from prior work (Zaken et al. 2021) and
gives no hyperparameters for it. Those below are our choice, in the usual range of bias-only tuning
(learning rate 1e-4 to 1e-3), not tuned.
"""

from configs.glue import common

# In the order of common.TASKS.
_TABLE = {
    "batch_size": (32, 32, 16, 16, 32, 32, 16, 16),
    "epochs": (10, 10, 20, 40, 10, 10, 40, 20),
    "learning_rate": (4e-4, 4e-4, 1e-3, 7e-4, 4e-4, 4e-4, 1e-3, 1e-3),
}


def get_config(arg: str = "sst2") -> common.ConfigDict:
    """Returns the config of `TASK`."""
    task, _ = common.parse(arg, ("ours",))
    config = common.glue_config(task, "roberta-base", {"name": "bitfit"})
    config.update(common.row(_TABLE, task))
    config.weight_decay = 0.0
    return config
