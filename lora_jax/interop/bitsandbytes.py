"""Quantised decoders as bitsandbytes' state dicts, which transformers loads with its quantization_config.

`hub.save_decoder` writes such a folder, and `hub.load_decoder` reads one.
"""

from __future__ import annotations

import numpy as np

from lora_jax.errors import InputError
from lora_jax.models import published
from lora_jax.models.decoder import Decoder
from lora_jax.quantisation.layers import quantised_layers


def state_dict(model: Decoder) -> dict[str, np.ndarray]:
    """The tensors of a quantised decoder by transformers' names, bit for bit as it holds them.

    NF4, FP4: `x.weight`, `x.weight.absmax`, `x.weight.quant_map` and so on, which
    `bitsandbytes.functional.QuantState.from_dict` reads; LLM.int8: `x.weight`, `x.SCB`,
    `x.weight_format`. Layers that are not packed have their numbers.

    Args:
      model: with layers in NF4, FP4 or int8 by rows, and no method.

    Raises:
      ValueError: no layer is quantised, one in another form, or a method is inserted.
    """
    if not quantised_layers(model):
        raise InputError(
            "the model has no quantised layer; lora_jax.quantise(model) packs its layers"
        )
    return published.tensors(model)
