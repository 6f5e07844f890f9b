"""LoRA on Stable Diffusion 1.x or 2.x with pictures of your own, with the settings of diffusers' example.

    python -m experiments.diffusion --config=configs/diffusion/stable_diffusion_lora.py --workdir=runs/mine \\
        --config.base=FOLDER --config.data.source=PICTURES

FOLDER is Stable Diffusion as diffusers saves it; PICTURES holds PNG or JPEG files and metadata.jsonl with a
line {"file_name": "1.png", "text": "a caption"} for each. The settings are those with which diffusers' guide
calls `train_text_to_image_lora.py` on 833 pictures: rank 4 on the projections of attention, scale 1,
N(0, (1/r)^2) for A, AdamW at 1e-4, 512 x 512 pixels, batches of 1, 4 of them an update, norm 1, 15,000
updates. There the rate falls as a cosine, here linearly; here no picture is flipped, and latents are means.

`subject` behind the colon is DreamBooth's (Ruiz et al. 2023): one subject,
`--config.data.caption="a photo of sks dog"`, and a prior, `--config.prior.captions="('a photo of dog',)"`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.diffusion.digits import shared_fields
from configs.diffusion.digits_style import ATTENTION

_UPDATES, _ACCUMULATED, _PICTURES = 15_000, 4, 833


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; `subject` has a prior of 200 pictures and shows each of its own 200 times.

    Raises:
      ValueError: something else behind the colon.
    """
    if arg not in ("", "subject"):
        raise ValueError(f"unknown {arg!r}; known is subject")
    subject = arg == "subject"
    config = ConfigDict(
        {
            **shared_fields(),
            "base": "stable-diffusion-v1-5",
            "method": {
                "name": "lora", "targets": ATTENTION, "rank": 4, "alpha": 4.0,
                "init": "gaussian", "std": 0.25,
            },
            "ranks": (),
            "data": {
                "source": "pictures",
                "caption": "",
                "size": 512,
                "style": "plain",
                "classes": (),
                "count": 1000,
                "repeats": 20 if subject else 1,
            },
            "prior": {"weight": 1.0 if subject else 0.0, "count": 200, "captions": ()},
            "epochs": 10 if subject else _UPDATES * _ACCUMULATED // _PICTURES,
            "batch_size": 1,
            "accumulate": 1 if subject else _ACCUMULATED,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "caption_dropout": 0.0,
        }
    )  # fmt: skip
    config.adam.eps = 1e-8
    config.samples.update({"steps": 30, "guidance": 7.5, "count": 4, "captions": ()})
    return config
