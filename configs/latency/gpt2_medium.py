"""Table 1 and Figure 5 of the paper: forward latency of GPT-2 medium.

    python -m experiments.latency --config=configs/latency/gpt2_medium.py --workdir=runs/latency
    python -m experiments.latency --config=configs/latency/gpt2_medium.py --workdir=runs/latency_bf16 \\
        --config.base_dtype=bfloat16

The batch sizes, lengths and bottlenecks of Figure 5, three of whose points are Table 1's, and adapters of
the two sizes that Table 1 names, each in the size nearest to the paper's count: 11,064,576 values (Adapter H,
112) and 11,089,152 (Adapter L, 224) for 11M, 540,912 (H, 5) and 516,312 (L, 9) for 0.5M. LoRA is Table 3's:
r = 4 on W_q and W_v, 393,216 values, which the latency of a merged model does not depend on.

The logits of all tokens take 3.3 GB at 32 x 512 in float32; on CPUs the whole grid takes days.
"""

from configs.latency.common import ConfigDict, latency_config

_ADAPTERS = {
    "adapter_h": {"name": "adapter_h", "size": 112},
    "adapter_l": {"name": "adapter_l", "size": 224},
    "adapter_h_small": {"name": "adapter_h", "size": 5},
    "adapter_l_small": {"name": "adapter_l", "size": 9},
}


def get_config() -> ConfigDict:
    """Returns the config."""
    return latency_config(
        width=1024, depth=24, heads=16, vocab_size=50257, positions=1024, adapters=_ADAPTERS,
        bottlenecks=(10, 100, 250), batch_sizes=(1, 2, 4, 8, 16, 32), lengths=(128, 256, 512),
    )  # fmt: skip
