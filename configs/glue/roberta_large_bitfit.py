"""RoBERTa-large with BitFit on GLUE. The paper has no such row; this completes the one of base.

    python -m experiments.glue --config=configs/glue/roberta_large_bitfit.py:TASK --workdir=runs/TASK

271,360 bias values and the head. Hyperparameters are those of configs/glue/roberta_base_bitfit.py
with half the learning rate; they are our choice, not tuned.
"""

from configs.glue import common, roberta_base_bitfit


def get_config(arg: str = "sst2") -> common.ConfigDict:
    """Returns the config of `TASK`."""
    config = roberta_base_bitfit.get_config(arg)
    config.model.name = "roberta-large"
    config.learning_rate /= 2
    return config
