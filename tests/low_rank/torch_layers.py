"""Layers of loralib and PEFT with random weights, and their values as ours."""

import jax.numpy as jnp
import numpy as np
import peft
import torch


class Holder(torch.nn.Module):
    """A model of one layer, for peft."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def torch_of(array):
    return torch.tensor(np.asarray(array))


def randomised_torch(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def peft_of(module, **config):
    """A PEFT model around one layer, with random weights everywhere."""
    holder = torch.nn.Module()
    holder.layer = module
    holder.forward = module.forward
    config = peft.LoraConfig(target_modules=["layer"], **config)
    layer = peft.inject_adapter_in_model(config, holder).layer
    return randomised_torch(layer).eval()


def numpy_of(tensor):
    return tensor.detach().numpy().copy()


def assign(layer, **values):
    for name, value in values.items():
        variable = layer
        for part in name.split("__"):
            variable = getattr(variable, part)
        assert variable.shape == value.shape, name
        variable[...] = jnp.asarray(value)
