"""A small diffusion model of scikit-learn's digits, which draws `a three`: for machines without a hub.

    python -m experiments.diffusion --config=configs/diffusion/digits.py --workdir=runs/digits
    python -m experiments.diffusion --config=configs/diffusion/digits.py:without_9 \\
        --workdir=runs/digits_without_9
    python -m experiments.diffusion --config=configs/diffusion/digits.py:16 --workdir=runs/digits_16

Behind the colon: `without_N` leaves a digit out, which an adapter can learn then; 16 is for pictures of
16 x 16 pixels, enlarged smoothly; both as `16,without_9`. The U-Net is Stable Diffusion's with two levels.
"""

from __future__ import annotations

import re

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.training import training_fields


def shared_fields() -> dict[str, object]:
    """Fields of every config of experiments.diffusion but those of the model and the data."""
    return {
        **training_fields(),
        "seed": 0,
        "caption_dropout": 0.1,
        "snr_gamma": placeholder(float),
        "samples": {"sampler": "ddim", "steps": 20, "guidance": 2.0, "count": 10, "seed": 0},
    }


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config.

    Args:
      arg: see above.

    Raises:
      ValueError: something else behind the colon.
    """
    side, left_out = 8, []
    for word in filter(None, arg.split(",")):
        if word in ("8", "16"):
            side = int(word)
        elif match := re.fullmatch(r"without_(\d)", word):
            left_out.append(int(match[1]))
        else:
            raise ValueError(
                f"unknown {word!r} in {arg!r}; known are 8, 16 and without_0 to without_9"
            )
    config = ConfigDict(
        {
            **shared_fields(),
            "model": {
                "channels": (16, 32),
                "attends": (False, True),
                "layers": 1,
                "heads": 4,
                "groups": 4,
                "words": 16,
            },
            "noise": {
                "num_train_timesteps": 1000,
                "beta_schedule": "squaredcos_cap_v2",
                "prediction_type": "v_prediction",
                "clip_sample": True,
            },
            "data": {"side": side, "left_out": tuple(left_out), "repeats": 5},
            "epochs": 10,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "warmup_steps": 50,
            "max_grad_norm": 1.0,
            "verify": False,
        }
    )
    return config
