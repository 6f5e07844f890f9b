"""The adaptation methods of the paper, by name.

    method = lora(r".*/(query|value)", rank=8, alpha=16, head=r"head/.*")
    adapted = method.insert(model, jax.random.key(0))
    print(method.summary(adapted))

One family a file: constructors, what they insert, and the rule that labels it. Every constructor takes
`head`, a regular expression for the paths of the task head's leaves. The head is a group of its own in
every method, because the paper's counts leave it out (Table 2).
"""

from lora_jax.methods.adalora import adalora
from lora_jax.methods.bottleneck import adapter_d, adapter_h, adapter_l, adapter_p
from lora_jax.methods.common import HEAD
from lora_jax.methods.gradient_start import start_from_gradients
from lora_jax.methods.ia3 import ia3
from lora_jax.methods.loha import loha
from lora_jax.methods.lokr import lokr
from lora_jax.methods.lora import lora
from lora_jax.methods.norms import norms
from lora_jax.methods.prefix import prefix_embed, prefix_layer
from lora_jax.methods.registry import CONSTRUCTORS, create, from_json
from lora_jax.methods.selection import bitfit, full, head_only, leaves, top_layers
from lora_jax.methods.token_rows import token_rows
from lora_jax.methods.vera import vera

__all__ = [
    "CONSTRUCTORS",
    "HEAD",
    "adalora",
    "adapter_d",
    "adapter_h",
    "adapter_l",
    "adapter_p",
    "bitfit",
    "create",
    "from_json",
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
]
