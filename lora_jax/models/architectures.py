"""The architectures that can be read from Hugging Face files: one entry each, by model_type.

A new architecture is a model file, a layout in `layouts`, and an entry here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

from lora_jax.errors import InputError, MissingFileError
from lora_jax.files import read_json
from lora_jax.models.decoder import Decoder, DecoderConfig
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.layouts import LAYOUTS, Layout

Json = dict[str, Any]  # the values of a config.json


@runtime_checkable
class ModelConfig(Protocol):
    """What the configurations of all architectures have: a dataclass, whatever its other fields."""

    @property
    def architecture(self) -> str:
        """The architecture's name, a key of `ARCHITECTURES`."""
        ...

    @property
    def depth(self) -> int:
        """Number of Transformer layers."""
        ...

    @property
    def heads(self) -> int:
        """Number of attention heads of a layer."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of the longest example that has position embeddings."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How an architecture is read and made.

    Attributes:
      config: dataclass of its sizes and settings. Fields that config.json has under the same name
        are taken from there.
      model: its module class: a classifier, made from (config, num_outputs, rngs), or a decoder,
        made from (config, rngs).
      layout: of its published tensors.
      implemented: settings of config.json that have one meaning here, each with the values that
        have it; the first one is the published default. Other values are refused.
      derived: fields of `config` that are computed from config.json.
      check: raises ValueError for published tensors, read from a folder, that the model cannot hold.
      published: what config.json says of a saved model besides its sizes; None if models of this
        architecture are not saved.
    """

    config: type[EncoderConfig] | type[DecoderConfig]
    model: type[Classifier] | type[Decoder]
    layout: Layout
    implemented: Mapping[str, tuple[Any, ...]]
    derived: Callable[[Json], Json] = lambda values: {}
    check: Callable[[Mapping[str, jax.Array], Path], None] = lambda tensors, folder: None
    published: Mapping[str, Any] | None = None

    def make(self, config: Any, num_outputs: int, rngs: nnx.Rngs) -> Classifier | Decoder:
        """A model with random values; a decoder has no use for `num_outputs`."""
        if issubclass(self.model, Classifier):
            return self.model(config, num_outputs, rngs)
        return self.model(config, rngs)


def _encoder_fields(values: Json) -> Json:
    """RoBERTa's first position comes after its padding index; BERT's is 0."""
    kind, padding = values["model_type"], values.get("pad_token_id")
    offset = (1 if padding is None else padding) + 1 if kind == "roberta" else 0
    return {"architecture": kind, "position_offset": offset}


def _refuse_untied(tensors: Mapping[str, jax.Array], folder: Path) -> None:
    """A GPT-2 file may repeat its embedding as `lm_head`; another output embedding is an error."""
    first = tensors.get("transformer.wte.weight", tensors.get("wte.weight"))
    last = tensors.get("lm_head.weight")
    if first is not None and last is not None and not np.array_equal(first, last):
        raise InputError(
            f"{folder}: lm_head.weight differs from transformer.wte.weight; a GPT-2 with its own "
            "output embedding is not supported"
        )


def _encoder(name: str) -> Architecture:
    return Architecture(
        config=EncoderConfig,
        model=Classifier,
        layout=LAYOUTS[name],
        implemented={"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)},
        derived=_encoder_fields,
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": _encoder("bert"),
    "roberta": _encoder("roberta"),
    "gpt2": Architecture(
        config=DecoderConfig,
        model=Decoder,
        layout=LAYOUTS["gpt2"],
        implemented={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,),
        },
        check=_refuse_untied,
        published={"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    ),
}


def read_config(
    folder: Path, model: type[nnx.Module] = nnx.Module, **overrides: Any
) -> EncoderConfig | DecoderConfig:
    """A model's configuration from config.json.

    Args:
      folder: of the model.
      model: only architectures of this module class are read.
      overrides: fields that replace those of the file.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; a model folder needs config.json")
    values = read_json(path)
    supported = [name for name, entry in ARCHITECTURES.items() if issubclass(entry.model, model)]
    if (name := values.get("model_type")) not in supported:
        raise InputError(
            f"{path}: model_type {name!r} is not supported here; supported: {', '.join(supported)}"
        )
    architecture = ARCHITECTURES[name]
    for key, allowed in architecture.implemented.items():
        if values.get(key, allowed[0]) not in allowed:
            raise InputError(
                f"{path}: {key} {values[key]!r} is not supported, only "
                + " or ".join(map(repr, allowed))
            )
    fields = {field.name for field in dataclasses.fields(architecture.config)}
    same_name = {key: value for key, value in values.items() if key in fields}
    return architecture.config(**{**same_name, **architecture.derived(values), **overrides})
