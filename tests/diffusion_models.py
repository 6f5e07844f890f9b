"""Small models of diffusers and transformers with random values, and random styles on them."""

from __future__ import annotations

import diffusers
import jax
import numpy as np
import peft
import torch
import transformers

import lora_jax as lj
from lora_jax.adapters import Adapter

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


def load_style(path, models):
    """Loads a style as diffusers' pipelines do.

    The text encoder's part is put in by PEFT: transformers 5 does so itself with PEFT 0.22 or later only.
    """
    state, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(path)
    diffusers.StableDiffusionPipeline.load_lora_into_unet(state, alphas, models["unet"])
    prefix = "text_encoder.text_model."  # whose end the modules of transformers 5 have not
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    for name, alpha in (alphas or {}).items():
        if name.startswith(prefix):
            down = name.removeprefix(prefix).removesuffix(".alpha")
            own[down.replace(".down.", ".up.")] *= alpha / len(own[down])
    own = diffusers.utils.convert_state_dict_to_diffusers(own)  # from kohya's names
    factors = diffusers.utils.convert_state_dict_to_peft(own)
    modules = {
        name.rpartition(".lora_")[0]: len(v) for name, v in factors.items() if "lora_A" in name
    }
    config = peft.LoraConfig(
        r=2, target_modules=list(modules), lora_alpha=2, rank_pattern=modules, alpha_pattern=modules
    )
    peft.inject_adapter_in_model(config, models["text_encoder"])
    kept = peft.set_peft_model_state_dict(models["text_encoder"], factors)
    assert not kept.unexpected_keys


def random_adapters(models, seed=0, alpha=6.0):
    """Adapters of our U-Net and text encoder, two ranks in the U-Net, all factors random."""
    methods = {
        "unet": lj.lora(
            {r".*/(to_q|conv1|proj_in)": {"rank": 2}, r".*/to_v": {"rank": 3}}, alpha=alpha
        ),
        "text_encoder": lj.lora(r".*/(q_proj|out_proj|fc1)", rank=2, alpha=alpha),
    }
    random, result = np.random.default_rng(seed), {}
    for name, method in methods.items():
        inserted = method.insert(models[name], jax.random.key(0))
        labels = method.labels(inserted)
        _, trainable, _ = lj.split(inserted, labels)
        values = {
            p: random.normal(0, 0.3, v.shape).astype(np.float32) for p, v in trainable.items()
        }
        base = lj.fingerprint(lj.base_parameters(models[name]))
        groups = {path: labels[path] for path in values}
        result[name] = Adapter(method, groups, values, base, {})
    return result
