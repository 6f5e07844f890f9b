"""LoRA+ (Hayou et al. 2024, arXiv 2402.12354): learning rates of B that are larger than those of A."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx

from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.method import Around
from lora_jax.methods.chosen_layers import ChosenLayer
from lora_jax.optimizers import scaled_updates

_FASTER = ("b", "b_bias", "magnitude")  # one-dimensional values are with B, as in PEFT


def faster_b(chosen: Mapping[str, ChosenLayer], model: nnx.Module) -> Around | None:
    """Makes the updates of B larger than those of A; None where no layer asks for it.

    Tables are left as they are: of theirs A starts at zero, and B at random.

    Args:
      chosen: layers, or parameters, by path.
      model: adapted.
    """
    rates: dict[str, float] = {}
    adapted = adapted_layers(model)
    for path, layer in chosen.items():
        settings = layer.settings
        if not isinstance(settings, LoRASettings) or settings.b_rate == 1 or adapted[path].gathers:
            continue
        for part in adapted[path].lora.members():
            place = factor_path(path, adapted[path], part)
            rates |= {f"{place}/{side}": settings.b_rate for side in _FASTER}
    return scaled_updates(rates) if rates else None
