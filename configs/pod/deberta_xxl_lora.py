"""DeBERTa XXL with LoRA on one TPU host, or on GPUs: is there room, and for which batch?

    python -m experiments.plan --config=configs/pod/deberta_xxl_lora.py --topology=v5e:2x4
    python -m experiments.plan --config=configs/pod/deberta_xxl_lora.py --topology=h100:1
    python -m experiments.plan --config=configs/pod/deberta_xxl_lora.py --topology=rtx4090:1 --config.rows=8

The method of Table 2 (r = 16 on query and value). A batch of 64 rows of 256 tokens, MNLI's length in
Table 10, with 6 examples each: MNLI's mean length is 40 tokens.
"""

from configs.glue.common import QUERY_VALUE
from configs.plan.common import ConfigDict, plan_config


def get_config() -> ConfigDict:
    """Returns the plan."""
    method = {"name": "lora", "targets": QUERY_VALUE, "rank": 16, "alpha": 32.0}
    return plan_config(
        "deberta-v2-xxlarge", method, mesh={"data": -1, "fsdp": 1, "model": 1}, rows=64, length=256,
        outputs=6, model_axis=(1, 2, 4), search_rows=(16, 64, 256), remat="dots",
    )  # fmt: skip
