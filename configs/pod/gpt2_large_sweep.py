"""A sweep of 64 LoRA runs over one GPT-2 large on 16 TPU v5e chips.

    python -m experiments.plan --config=configs/pod/gpt2_large_sweep.py --topology=v5e:4x4

64 runs of rank 64 (smaller ranks are padded to it) on q and v, four on each chip, each with a batch of
its own of 16 rows of 512 tokens, of which 250 are completions. Compiled: 8.03 of 16 GiB, 1.44 of them
the base. The runs share it and send nothing but metrics; one run at a time, its rows over all chips,
sends 4.35 GiB in 64 steps and reads the base 64 times.

Other meshes: `--config.mesh.run=4 --config.mesh.data=4`, or `--search`.
"""

from configs.nlg.common import LORA
from configs.plan.common import ConfigDict, plan_config


def get_config() -> ConfigDict:
    """Returns the plan."""
    return plan_config(
        "gpt2-large", {**LORA, "rank": 64, "dropout": 0.1}, runs=64,
        mesh={"run": -1, "data": 1, "fsdp": 1, "model": 1}, rows=16, length=512, outputs=250,
        remat="full", search_runs=(16, 64, 128), run_axis=(1, 4, 16), search_rows=(16,),
        weight_decay=0.01,
    )  # fmt: skip
