"""LoRA on the U-Net of Stable Diffusion: does it fit the card, and for which batch?

    python -m experiments.plan --config=configs/plan/stable_diffusion_lora.py --topology=rtx4090:1
    python -m experiments.plan --config=configs/plan/stable_diffusion_lora.py:stable-diffusion-2-1 \\
        --topology=rtx3090:1 --config.rows=4

Rank 4 on the projections of attention, as in diffusers' example, beside full fine-tuning. A row is a picture
of 512 x 512 pixels, whose latent image has 64 x 64 elements, which stand as its tokens. Latent images and
texts are encoded before training, so neither autoencoder nor text encoder is in memory then.
`--config.model.remat=full` computes every block again in the backward pass.
"""

from configs.plan.common import ConfigDict, plan_config

_METHOD = {"name": "lora", "targets": r".*/(to_q|to_k|to_v|to_out)", "rank": 4, "alpha": 4.0}


def get_config(size: str = "stable-diffusion-v1-5") -> ConfigDict:
    """Returns the plan of `stable-diffusion-v1-5` or `stable-diffusion-2-1`."""
    return plan_config(
        size, _METHOD, mesh={"data": -1, "fsdp": 1, "model": 1}, rows=1, length=64 * 64, outputs=64 * 64,
        search_rows=(1, 2, 4, 8, 16), max_grad_norm=1.0,
    )  # fmt: skip
