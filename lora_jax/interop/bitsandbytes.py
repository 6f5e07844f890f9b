"""Quantised models as bitsandbytes' state dicts, which transformers loads with its quantization_config.

`hub.save_decoder` and its like write such a folder, and `hub.load_decoder` and its like read one.
"""

from __future__ import annotations

import numpy as np

from lora_jax.arguments import Kind, takes
from lora_jax.errors import InputError
from lora_jax.models import published
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_classifier import DecoderClassifier
from lora_jax.models.encoder import Classifier
from lora_jax.models.published import NO_LAYOUT, Published
from lora_jax.quantisation.layers import quantised_layers

_MODEL = Kind(
    (Decoder, Classifier, DecoderClassifier),
    f"a Decoder, a Classifier or a DecoderClassifier; {NO_LAYOUT}",
)


@takes(model=_MODEL)
def state_dict(model: Published) -> dict[str, np.ndarray]:
    """The tensors of a quantised model by transformers' names, bit for bit as it holds them.

    NF4, FP4: `x.weight`, `x.weight.absmax`, `x.weight.quant_map` and so on, which
    `bitsandbytes.functional.QuantState.from_dict` reads; LLM.int8: `x.weight`, `x.SCB`,
    `x.weight_format`. Layers that are not packed have their numbers.

    Args:
      model: with layers in NF4, FP4 or int8 by rows, and no method.

    Raises:
      TypeError: a model of another kind, which has no names there.
      ValueError: no layer is quantised, one in another form, or a method is inserted.
    """
    if not quantised_layers(model):
        raise InputError(
            "the model has no quantised layer; lora_jax.quantise(model) packs its layers"
        )
    return published.tensors(model)
