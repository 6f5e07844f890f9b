"""The architectures that can be read from Hugging Face files: one entry each, by model_type.

A new architecture is a model file, a layout in `layouts`, and an entry here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flax import nnx

from lora_jax.errors import FileError
from lora_jax.models import config_json, deberta_json, encoder_json, llama_json
from lora_jax.models.deberta import DebertaClassifier
from lora_jax.models.deberta_config import DebertaConfig
from lora_jax.models.decoder import Decoder
from lora_jax.models.encoder import Classifier
from lora_jax.models.encoder_config import DistilBertConfig, ElectraConfig, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.models.layouts import LAYOUTS, Layout
from lora_jax.models.llama import Llama
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.reading import Record

AnyDecoderConfig = GPT2Config | LlamaConfig
AnyConfig = EncoderConfig | AnyDecoderConfig


@runtime_checkable
class ModelConfig(Protocol):
    """What the configurations of all architectures have: a dataclass, whatever its other fields."""

    @property
    def architecture(self) -> str:
        """The architecture's name, a key of `ARCHITECTURES`."""
        ...

    @property
    def width(self) -> int:
        """Values of an activation."""
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
      config: dataclass of its sizes and settings.
      model: its module class: a classifier, made from (config, num_outputs, rngs), or a decoder,
        made from (config, rngs).
      layout: of its published tensors.
      keys: of its config.json.
      derived: fields of `config` that are computed from config.json.
      published: what config.json says of a saved model; of encoders, of one without a head.
    """

    config: type[AnyConfig]
    model: type[Classifier] | type[GPT2] | type[Llama]
    layout: Layout
    keys: config_json.Keys
    published: Callable[[Any], dict[str, Any]]
    derived: Callable[[Record], dict[str, Any]] = lambda record: {}

    def make(self, config: Any, num_outputs: int, rngs: nnx.Rngs) -> Classifier | Decoder:
        """A model with random values; a decoder has no use for `num_outputs`."""
        if issubclass(self.model, Classifier):
            return self.model(config, num_outputs, rngs)
        return self.model(config, rngs)


def _published_gpt2(config: GPT2Config) -> dict[str, Any]:
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k in config_json.GPT2.ranges}
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **fields}


ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(
        config=EncoderConfig,
        model=Classifier,
        layout=LAYOUTS["bert"],
        keys=encoder_json.ENCODER,
        published=encoder_json.published,
        derived=lambda record: {"architecture": "bert"},
    ),
    **{
        name: Architecture(
            config=EncoderConfig,
            model=Classifier,
            layout=LAYOUTS[name],
            keys=encoder_json.ENCODER,
            published=encoder_json.published,
            derived=functools.partial(encoder_json.roberta_fields, name),
        )
        for name in encoder_json.ROBERTAS
    },
    "electra": Architecture(
        config=ElectraConfig,
        model=Classifier,
        layout=LAYOUTS["electra"],
        keys=encoder_json.ELECTRA,
        published=encoder_json.published,
    ),
    "distilbert": Architecture(
        config=DistilBertConfig,
        model=Classifier,
        layout=LAYOUTS["distilbert"],
        keys=encoder_json.DISTILBERT,
        published=encoder_json.published,
    ),
    "deberta-v2": Architecture(
        config=DebertaConfig,
        model=DebertaClassifier,
        layout=LAYOUTS["deberta-v2"],
        keys=deberta_json.KEYS,
        published=deberta_json.published,
        derived=deberta_json.derived,
    ),
    "gpt2": Architecture(
        config=GPT2Config,
        model=GPT2,
        layout=LAYOUTS["gpt2"],
        keys=config_json.GPT2,
        published=_published_gpt2,
    ),
    **{
        name: Architecture(
            config=LlamaConfig,
            model=Llama,
            layout=LAYOUTS[name],
            keys=llama_json.keys(name),
            derived=functools.partial(llama_json.derived, name),
            published=llama_json.published,
        )
        for name in llama_json.FAMILIES
    },
}


# Why the model of a model_type is not one of those above.
_OTHERS = {
    "albert": "All layers of an ALBERT share one set of weights, which runs once for each. A layer that "
    "stands at several depths is not implemented: a method would adapt all of them at once. BERT, RoBERTa, "
    "ELECTRA and DistilBERT have weights of their own in every layer",
    "deberta": "It is a DeBERTa of the first version, whose layers are others. Versions 2 and 3, whose "
    "model_type is deberta-v2, are implemented (microsoft/deberta-v3-base, for example)",
}


def _refused(record: Record, folder: Path) -> str:
    """Why a model_type is refused, and what to do."""
    if "model_type" not in record.values:
        return config_json.without_config(folder)
    return _OTHERS.get(str(record.values["model_type"]), "")


def read_config(folder: Path, model: type[nnx.Module] = nnx.Module, **overrides: Any) -> AnyConfig:
    """A model's configuration from config.json.

    Args:
      folder: of the model.
      model: only architectures of this module class are read.
      overrides: fields that replace those of the file.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: an architecture or setting that is not implemented, a value out of its range, or an
        override that is no field.
    """
    record = config_json.read(folder)
    supported = [name for name, entry in ARCHITECTURES.items() if issubclass(entry.model, model)]
    name = record.values.get("model_type")
    if not isinstance(name, str) or name not in supported:
        raise FileError(
            record.path, "", f"model_type {name!r}"[:80], f"one of {', '.join(supported)}",
            _refused(record, folder),
        )  # fmt: skip
    architecture = ARCHITECTURES[name]
    config: AnyConfig = config_json.configuration(
        record, architecture.config, architecture.keys, architecture.derived, overrides
    )
    return config
