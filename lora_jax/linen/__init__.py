"""Models of Flax Linen: every method, label, optimizer, merge and adapter folder of the library for them.

    model = lora_jax.linen.as_nnx(module, variables, *example_inputs)
    adapted = lora_jax.lora(".*/(query|value)", rank=8).insert(model, jax.random.key(0))
    ...                                                 # train as any model, see docs/linen.md
    params = lora_jax.linen.variables(lora_jax.merge(adapted))["params"]  # for module.apply

`as_nnx` shows a Linen model as an NNX model: its modules and variables have their paths, and calling it
calls `module.apply`, in which adapted layers pass activations through their factors.
"""

from lora_jax.linen.bridge import as_nnx, variables
from lora_jax.linen.calls import LinenLoRALayer
from lora_jax.linen.layers import EinsumLoRALayer, register

__all__ = ["EinsumLoRALayer", "LinenLoRALayer", "as_nnx", "register", "variables"]
