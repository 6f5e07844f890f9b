"""Models as Hugging Face's files have them: tensors and config.json."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flax import nnx

from lora_jax import partition, surgery
from lora_jax.errors import InputError
from lora_jax.models.architectures import ARCHITECTURES
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_classifier import ROOT, DecoderClassifier
from lora_jax.models.encoder import Classifier
from lora_jax.models.layouts import Layout
from lora_jax.models.plain import UNPACK, check_whole
from lora_jax.models.quantization_json import KEY, quantization_config
from lora_jax.models.tensors import published_name, to_published
from lora_jax.quantisation import bitsandbytes
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.layers import packed_weight, quantised_layers
from lora_jax.quantisation.weight import PackedWeight

Published = Decoder | Classifier | DecoderClassifier
# What is said of another model.
NO_LAYOUT = (
    "a model of your own has no layout in the files of Hugging Face: save its state with Orbax, see "
    "docs/quantised.md"
)
_OF_TEXTS = "ForSequenceClassification"
_LM_HEAD = "lm_head/"  # which classifiers have not
_KIND = re.compile("LMHeadModel|ForCausalLM|Model")  # what a name of transformers' classes ends in


def tensors(model: Published, *, head: bool = True) -> dict[str, np.ndarray]:
    """The published tensors by name; packed matrices are several each, as bitsandbytes has them.

    Args:
      model: of an architecture that Hugging Face's files have.
      head: whether those of a head for classification are among them.

    Raises:
      ValueError: a method inserted something or cut the layers, or a layer is packed in a form that
        bitsandbytes has not.
    """
    check_whole(model)
    packed = _packed(model, head)
    layout = ARCHITECTURES[model.config.architecture].layout
    leaves = {
        path.removeprefix(ROOT): value
        for path, value in partition.parameters(model).items()
        if path.rpartition("/")[0] not in packed and _is_saved(path, layout, head)
    }
    result = to_published(leaves, layout)
    for path, weight in packed.items():
        for layer, matrix in enumerate(weight.to_rows()):
            module = published_name(path.removeprefix(ROOT), layout, layer).removesuffix("weight")
            parts = bitsandbytes.tensors(weight.format, matrix, weight.matrix, weight.dtype)
            result |= {module + name: value for name, value in parts.items()}
    return result


def config(model: Published, *, head: bool = True) -> dict[str, Any]:
    """What config.json says of the model.

    Args:
      model: see `tensors`.
      head: whether it is saved with its head for classification, if it has one.

    Raises:
      ValueError: a layer is packed in a form that bitsandbytes has not, or layers in several ones.
    """
    architecture = ARCHITECTURES[model.config.architecture]
    values: dict[str, Any] = architecture.published(model.config)
    if head and not isinstance(model, Decoder):
        (name,) = values["architectures"]
        values["architectures"] = [_KIND.sub(_OF_TEXTS, name)]
    if format := _format(_packed(model, head)):
        skipped = _skipped(model, architecture.layout)
        values[KEY] = quantization_config(format, skipped, model.config.compute_dtype)
    return values


def _is_saved(path: str, layout: Layout, head: bool) -> bool:
    """Whether a parameter is one of the model that is saved."""
    is_head = any(path.startswith(f"{module}/") for module in layout.head)
    return not path.startswith(ROOT + _LM_HEAD) and (head or not is_head)


def _packed(model: Published, head: bool) -> dict[str, PackedWeight]:
    """The packed weights that are saved, by the path of the leaf whose place they take."""
    weights = {}
    layout = ARCHITECTURES[model.config.architecture].layout
    for path, layer in quantised_layers(model).items():
        name, weight = packed_weight(layer)
        if not _is_saved(f"{path}/{name}", layout, head):
            continue
        if not bitsandbytes.has(weight.format):
            raise InputError(
                f"{path} is packed as {weight.format}, and bitsandbytes has NF4, FP4 and int8 by rows only; "
                f"{UNPACK}"
            )
        if weight.table:
            raise InputError(
                f"{path} is a packed table; packed files of transformers have linear layers only. {UNPACK}"
            )
        weights[f"{path}/{name}"] = weight
    return weights


def _format(packed: dict[str, PackedWeight]) -> Format | None:
    """The form of all packed weights; None if there are none."""
    by_format = {weight.format: path for path, weight in packed.items()}
    if len(by_format) > 1:
        (first, one), (second, other), *_ = by_format.items()
        raise InputError(
            f"{one} is packed as {first}, {other} as {second}; config.json has a place for one form. "
            f"{UNPACK}"
        )
    return next(iter(by_format), None)


def _skipped(model: Published, layout: Layout) -> list[str]:
    """The linear layers that transformers shall not take for packed ones.

    transformers compares the ends of names, and `output.dense` is the end of `attention.output.dense` too:
    so every layer is named in full, but for the prefix, which models without a head do not have.
    """
    modules, packed = surgery.pretrained_modules(model), quantised_layers(model)
    names = {name.removesuffix(".weight") for name in layout.tied}  # a tied head is a layer there
    for path, module in modules.items():
        if not isinstance(module, nnx.Linear | nnx.LinearGeneral):
            continue
        template = layout.source(f"{path.removeprefix(ROOT)}/kernel")[0].removesuffix(".weight")
        numbers = range(model.config.depth) if "{}" in template else range(1)
        own = {template.format(number) for number in numbers}
        names = names - own if path in packed else names | own
    return sorted(names)
