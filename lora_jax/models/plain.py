"""Whether a model is as published ones are: nothing inserted, cut or packed."""

from __future__ import annotations

from flax import nnx

from lora_jax.errors import InputError
from lora_jax.models.stack import SplitStack
from lora_jax.quantisation.layers import quantised_layers
from lora_jax.surgery import Inserted

# What to do about packed layers that files have no place for.
UNPACK = (
    "lora_jax.dequantise(model) makes a model of floating-point numbers of it, which can be saved"
)


def check_whole(model: nnx.Module) -> None:
    """Raises InputError for a model into which a method inserted something, or whose layers it cut."""
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    foreign = [path for path, m in modules.items() if isinstance(m, Inserted | SplitStack)]
    if foreign:
        raise InputError(
            f"{sorted(foreign)[:5]} are not part of a published model: merge low-rank updates and "
            "take other inserted modules away before saving; a model with cut layers cannot be saved"
        )


def check_plain(model: nnx.Module) -> None:
    """Raises InputError for such a model, and for one with quantised layers."""
    check_whole(model)
    if quantised := list(quantised_layers(model)):
        raise InputError(f"{quantised[0]} is quantised; {UNPACK}")
