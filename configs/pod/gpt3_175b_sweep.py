"""A sweep of 8 LoRA runs over one GPT-3 175B on 64 TPU v5p chips.

    python -m experiments.plan --config=configs/pod/gpt3_175b_sweep.py --topology=v5p:4x4x4

8 runs of rank 64 (smaller ranks are padded to it) on q and v, each with a batch of its own of 16 rows
of 2,048 tokens, every token predicted. Compiled for fsdp=16 x model=4: 56.4 of 95 GiB, 5.15 of them the
base. It is gathered once for all runs: 110 GiB, where 8 steps of one run at a time gather 827 GiB.

`--config.mesh.run=4`: two runs on each quarter of the slice, and a copy of the base on each.
"""

from configs.plan.common import ConfigDict, plan_config
from configs.pod import gpt3_175b_lora


def get_config() -> ConfigDict:
    """Returns the plan."""
    method = {**gpt3_175b_lora.get_config().method.to_dict(), "rank": 64}
    return plan_config(
        "gpt3-175b", method, runs=8, mesh={"run": 1, "data": 1, "fsdp": -1, "model": 4}, rows=16,
        length=2048, outputs=2047, remat="full", single_mesh={"data": 1, "fsdp": -1}, model_axis=(4, 8),
        run_axis=(1, 4), search_runs=(8, 16), max_grad_norm=1.0, weight_decay=0.1,
    )  # fmt: skip
