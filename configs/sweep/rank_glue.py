"""Rank on GLUE."""

from configs.glue import minilm_weights
from configs.sweep.common import ConfigDict, sweep_config


def get_config(arg: str = "mrpc") -> ConfigDict:
    """x."""
    run = minilm_weights.get_config(f"{arg},qv,8")
    return sweep_config(
        "glue",
        run,
        {
            "ranks": {"method": {"rank": (1, 2, 4, 8, 16, 64)}, "seeds": (0,)},
            "seeds": {"method": {"rank": (8,)}, "seeds": (1, 2)},
        },
    )
