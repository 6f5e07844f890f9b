"""GPT-2 large with LoRA on one TPU host: is there room, and for which batch?

    python -m experiments.plan --config=configs/pod/gpt2_large_lora.py --topology=v5e:2x4

The method of Table 3 (r = 4 on q and v). A batch of 32 rows of 512 tokens, of which 250 are
completions: about nine E2E examples to a row.
"""

from configs.nlg.common import LORA
from configs.plan.common import ConfigDict, plan_config


def get_config() -> ConfigDict:
    """Returns the plan."""
    return plan_config(
        "gpt2-large", {**LORA, "dropout": 0.1}, mesh={"data": -1, "fsdp": 1, "model": 1}, rows=32,
        length=512, outputs=250, model_axis=(1, 2, 4), search_rows=(16, 32, 64),
        weight_decay=0.01,
    )  # fmt: skip
