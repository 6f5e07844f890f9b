"""Small models of diffusers and transformers with random values, and ours read from their files."""

from __future__ import annotations

import diffusers
import numpy as np
import torch
import transformers

torch.set_num_threads(1)
CROSS = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}
PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}


def _types(attends: tuple[bool, ...]) -> dict[str, tuple[str, ...]]:
    return {
        "down_block_types": tuple((CROSS if a else PLAIN)["down"] for a in attends),
        "up_block_types": tuple((CROSS if a else PLAIN)["up"] for a in attends[::-1]),
    }


_SMALL = {"norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 12}
# As Stable Diffusion 1 and 2 are, and small ones of other kinds.
UNETS = {
    "sd1": {**_SMALL, **_types((True, False)), "block_out_channels": (8, 16), "attention_head_dim": 2},
    "sd2": {
        **_SMALL, **_types((True, True)), "block_out_channels": (8, 16),
        "attention_head_dim": (1, 4), "use_linear_projection": True, "upcast_attention": True,
    },
    "no attention": {
        **_SMALL, **_types((False, False)), "block_out_channels": (8, 12), "in_channels": 1,
        "out_channels": 1, "mid_block_type": "UNetMidBlock2D",
    },
    "no middle": {
        **_SMALL, **_types((False, True)), "block_out_channels": (12, 8), "mid_block_type": None,
        "layers_per_block": 2, "transformer_layers_per_block": 2, "flip_sin_to_cos": False, "freq_shift": 1,
        "norm_eps": 1e-3, "out_channels": 6, "attention_head_dim": 4,
    },
    "one block": {
        **_SMALL, **_types((True,)), "block_out_channels": (8,), "attention_head_dim": [8],
        "use_linear_projection": True, "sample_size": 4,
    },
}  # fmt: skip
VAES = {
    "sd": {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8), "layers_per_block": 2, "norm_num_groups": 4,
    },
    "one block": {
        "block_out_channels": (8,), "norm_num_groups": 2, "latent_channels": 3, "in_channels": 1,
        "out_channels": 1, "scaling_factor": 0.5,
    },
    "no attention": {
        "block_out_channels": (8,), "norm_num_groups": 4, "mid_block_add_attention": False,
        "latent_channels": 2,
    },
}  # fmt: skip
CLIPS = {
    "sd1": {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2},
    "sd2": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "hidden_act": "gelu"},
    "short": {
        "hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "layer_norm_eps": 1e-3,
        "max_position_embeddings": 11,
    },
}  # fmt: skip


def randomised(model, seed):
    """The model with all its values random, those of norms too, and none that does not count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            fan_in = value[0].numel() if value.ndim > 1 else 1
            spread = 0.2 if value.ndim == 1 else fan_in**-0.5
            drawn = spread * torch.randn(value.shape, generator=generator)
            value.copy_(drawn + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


def unet(variant, seed=0):
    return randomised(diffusers.UNet2DConditionModel(**{"sample_size": 8, **UNETS[variant]}), seed)


def vae(variant, seed=0):
    return randomised(diffusers.AutoencoderKL(**VAES[variant]), seed)


def clip(variant, seed=0, **changes):
    settings = {"vocab_size": 60, "intermediate_size": 20, "max_position_embeddings": 16}
    config = transformers.CLIPTextConfig(**{**settings, **CLIPS[variant], **changes})
    return randomised(transformers.CLIPTextModel(config), seed)


def inputs(config, size=(8, 8), seed=1, length=5, batch=2):
    """Noisy images, times and contexts for a U-Net, channels last."""
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((batch, *size, config.in_channels), np.float32)
    times = np.array([3.0, 751.0, 17.0, 0.0], np.float32)[:batch]
    context = rng.standard_normal((batch, length, config.cross_attention_dim), np.float32)
    return sample, times, context


def channels_first(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)
