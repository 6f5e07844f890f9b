"""A style, or a new digit, from ten pictures: LoRA on the small diffusion model of digits.

    python -m experiments.diffusion --config=configs/diffusion/digits.py --workdir=runs/digits
    python -m experiments.diffusion --config=configs/diffusion/digits_style.py:slanted --workdir=runs/slanted

Behind the colon `inverted`, `slanted` or `thick`: ten pictures, one of each digit, in that style. Or
`new_digit`: the base is one that has never seen a nine (configs/diffusion/digits.py:without_9), and ten
pictures with the caption `a nine` teach it one, with the row of the word `nine` and a prior of the other
digits. Several ranks are compared. LoRA adapts attention and convolutions, as the base has no attention among
pixels. `slanted,attention` leaves the convolutions as they are.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.arguments import parse
from configs.diffusion.digits import shared_fields

ATTENTION = r".*/attn[12]/to_(q|k|v|out)"
CONVOLUTIONS = r".*/(conv|conv1|conv2|conv_shortcut|conv_in|conv_out)"
STYLES = ("inverted", "slanted", "thick")
NEW, NEW_DIGIT, ROW = "new_digit", 9, 11  # `ROW`: of the word `nine` in the table


def get_config(arg: str = "slanted") -> ConfigDict:
    """Returns the config of a style, or of a new digit.

    Raises:
      ValueError: another name.
    """
    name, layers = parse(arg, ("all", "attention"), "choice of layers")
    if name not in (*STYLES, NEW):
        raise ValueError(
            f"unknown style {name!r} in {arg!r}; known are {', '.join((*STYLES, NEW))}"
        )
    targets: Any = ATTENTION if layers == "attention" else (ATTENTION, CONVOLUTIONS)
    method: dict[str, Any] = {"name": "lora", "targets": targets, "rank": 4, "alpha": None}
    method["too_large"] = "cap"  # of the convolutions from and to one channel
    is_new = name == NEW
    if is_new:
        method["plus"] = {"name": "token_rows", "rows": {"words": (ROW,)}}
    return ConfigDict(
        {
            **shared_fields(),
            "base": "runs/digits_without_9" if is_new else "runs/digits",
            "method": method,
            "ranks": (1, 4, 16),
            "data": {
                "source": "digits",
                "caption": "",
                "size": 8,
                "style": "plain" if is_new else name,
                "classes": (NEW_DIGIT,) if is_new else (),
                "count": 10,
                "repeats": 100,
            },
            "prior": {"weight": 1.0 if is_new else 0.0, "count": 90, "captions": ()},
            "epochs": 5,
            "batch_size": 10,
            "learning_rate": 3e-3,
            "warmup_ratio": 0.06,
            "max_grad_norm": 1.0,
        }
    )
