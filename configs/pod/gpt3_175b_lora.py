"""GPT-3 175B with LoRA on 64 TPU v5p chips: the paper's claim of a third of the memory (section 4.2).

    python -m experiments.plan --config=configs/pod/gpt3_175b_lora.py --topology=v5p:4x4x4

r = 8 on q and v, the paper's 37.7M row of Table 4. A batch of 16 rows of 2,048 tokens, every token
predicted. Variants: `:qv4`, the r = 4 of section 4.2 (18.9M), and `:v2`, Table 4's 4.7M row.
"""

from configs.plan.common import ConfigDict, plan_config

_RANKS = {"qv8": (8, ("q", "v")), "qv4": (4, ("q", "v")), "v2": (2, ("v",))}


def get_config(arg: str = "qv8") -> ConfigDict:
    """Returns the plan of `qv8`, `qv4` or `v2`."""
    if arg not in _RANKS:
        raise ValueError(f"unknown variant {arg!r}; known are {list(_RANKS)}")
    rank, parts = _RANKS[arg]
    method = {
        "name": "lora", "targets": r".*/attention/qkv", "parts": parts, "fused": ("q", "k", "v"),
        "rank": rank, "alpha": 8.0,
    }  # fmt: skip
    return plan_config(
        "gpt3-175b", method, mesh={"data": 1, "fsdp": -1, "model": 4}, rows=16, length=2048,
        outputs=2047, remat="full", model_axis=(1, 2, 4, 8), search_rows=(16, 32, 64),
        max_grad_norm=1.0, weight_decay=0.1,
    )  # fmt: skip
