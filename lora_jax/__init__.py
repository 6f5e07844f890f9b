"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021), in JAX and Flax NNX.

method = lora_jax.lora(r".*/(query|value)", rank=8, alpha=16, head=r"head/.*")
adapted = method.insert(model, jax.random.key(0))
structure, trainable, frozen = lora_jax.split(adapted, method.labels(adapted))
"""

from lora_jax.adapters import attach, load_adapter, save_adapter
from lora_jax.layers import seed_dropout
from lora_jax.merge import merge, strip
from lora_jax.method import Method
from lora_jax.methods import (
    adapter_d,
    adapter_h,
    adapter_l,
    adapter_p,
    bitfit,
    full,
    head_only,
    lora,
    prefix_embed,
    prefix_layer,
    top_layers,
)
from lora_jax.partition import FROZEN, Rule, join, optimizer, parameters, split

__version__ = "0.2.0.dev0"

__all__ = [
    "FROZEN",
    "Method",
    "Rule",
    "adapter_d",
    "adapter_h",
    "adapter_l",
    "adapter_p",
    "attach",
    "bitfit",
    "full",
    "head_only",
    "join",
    "load_adapter",
    "lora",
    "merge",
    "optimizer",
    "parameters",
    "prefix_embed",
    "prefix_layer",
    "save_adapter",
    "seed_dropout",
    "split",
    "strip",
    "top_layers",
]
