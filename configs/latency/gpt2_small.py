"""Table 1 and Figure 5 in small, for a laptop: a GPT-2 of 4 layers, 256 wide, and a small grid.

    python -m experiments.latency --config=configs/latency/gpt2_small.py --workdir=runs/latency_small

Some minutes on two CPU cores. The adapters have the shares of the model that the paper's have of GPT-2
medium, and the bottlenecks of Figure 5 are a quarter of the paper's, as the model is a quarter as wide. One
point, one row of 128 tokens, is Table 1's; a pass is short, so that what a contender adds to it weighs more
than in GPT-2 medium.
"""

from configs.latency.common import ConfigDict, latency_config

_ADAPTERS = {
    "adapter_h": {"name": "adapter_h", "size": 32},
    "adapter_l": {"name": "adapter_l", "size": 64},
}


def get_config() -> ConfigDict:
    """Returns the config."""
    return latency_config(
        width=256, depth=4, heads=4, vocab_size=4096, positions=128, adapters=_ADAPTERS,
        bottlenecks=(3, 25, 63), batch_sizes=(1, 2, 4), lengths=(32, 64, 128),
    )  # fmt: skip
