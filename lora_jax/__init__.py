"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021), in JAX and Flax NNX.

method = lora_jax.lora(r".*/(query|value)", rank=8, alpha=16, head=r"head/.*")
adapted = method.insert(model, jax.random.key(0))
structure, trainable, frozen = lora_jax.split(adapted, method.labels(adapted))

`lora_jax.training` has a trainer for this.
"""

from lora_jax import linen
from lora_jax.adapter_set import AdapterSet
from lora_jax.adapters import attach, load_adapter, save_adapter
from lora_jax.conversion import to_lora
from lora_jax.fingerprints import base_parameters, fingerprint
from lora_jax.low_rank.contraction import Contraction
from lora_jax.low_rank.einsum import EinsumLoRALayer
from lora_jax.low_rank.layers import register
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.merge import merge, strip
from lora_jax.low_rank.seeding import seed_dropout
from lora_jax.low_rank.switching import disabled, enable
from lora_jax.method import Method, trainable
from lora_jax.methods import (
    adalora,
    adapter_d,
    adapter_h,
    adapter_l,
    adapter_p,
    bitfit,
    full,
    head_only,
    ia3,
    leaves,
    loha,
    lokr,
    lora,
    norms,
    prefix_embed,
    prefix_layer,
    start_from_gradients,
    token_rows,
    top_layers,
    vera,
)
from lora_jax.partition import FROZEN, Rule, join, optimizer, parameters, split
from lora_jax.pool import AdapterPool
from lora_jax.quantisation.merging import merge_packed
from lora_jax.quantisation.quantise import dequantise, quantise
from lora_jax.saving import load, save
from lora_jax.state import moved
from lora_jax.verification.report import Verification
from lora_jax.verification.verify import verify

__version__ = "0.2.0.dev0"

__all__ = [  # noqa: RUF022 - in groups
    # Methods: what is inserted, and what trains
    "Method",
    "Rule",
    "adalora",
    "adapter_d",
    "adapter_h",
    "adapter_l",
    "adapter_p",
    "bitfit",
    "full",
    "head_only",
    "ia3",
    "leaves",
    "loha",
    "lokr",
    "lora",
    "norms",
    "prefix_embed",
    "prefix_layer",
    "start_from_gradients",
    "token_rows",
    "top_layers",
    "vera",
    # Partition: parameters by path, labels, the optimizer, the train step's parts, state that moves
    "FROZEN",
    "join",
    "moved",
    "optimizer",
    "parameters",
    "seed_dropout",
    "split",
    "trainable",
    # Adapter folders; several adapters by name
    "AdapterPool",
    "AdapterSet",
    "attach",
    "base_parameters",
    "fingerprint",
    "load",
    "load_adapter",
    "save",
    "save_adapter",
    # Merging, back to the base, and to plain LoRA
    "merge",
    "strip",
    "to_lora",
    # Weights in four to eight bits
    "dequantise",
    "merge_packed",
    "quantise",
    # Does it do what it should; with the update and without
    "Verification",
    "disabled",
    "enable",
    "verify",
    # Models of Flax Linen
    "linen",
    # Layers of your own
    "Contraction",
    "EinsumLoRALayer",
    "LoRALayer",
    "register",
]
