"""RoBERTa-large with LoRA on one TPU host: is there room, and for which batch?

    python -m experiments.plan --config=configs/pod/roberta_large_lora.py --topology=v5e:2x4

The method of Table 2 (r = 8 on query and value). A batch of 64 rows of 512 tokens with 12 examples
each: MNLI's mean length is 40 tokens.
"""

from configs.glue.common import QUERY_VALUE
from configs.plan.common import ConfigDict, plan_config


def get_config() -> ConfigDict:
    """Returns the plan."""
    method = {"name": "lora", "targets": QUERY_VALUE, "rank": 8, "alpha": 16.0}
    return plan_config(
        "roberta-large", method, mesh={"data": -1, "fsdp": 1, "model": 1}, rows=64, length=512,
        outputs=12, model_axis=(1, 2, 4), search_rows=(16, 64, 256), weight_decay=0.1,
        max_grad_norm=1.0,
    )  # fmt: skip
