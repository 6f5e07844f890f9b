"""A pre-trained model by name, whatever its architecture, with an adapter on it."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
from flax import nnx

from lora_jax import adapters, partition
from lora_jax.adapters import Adapter
from lora_jax.models import hub
from lora_jax.models.tensors import read_json
from lora_jax.sharding.placement import in_host_memory


def load(folder: Path, outputs: int) -> nnx.Module:
    """GPT-2 as a decoder, BERT and RoBERTa as a classifier with a fresh head.

    Args:
      folder: from `hub.find`.
      outputs: of the head.

    Raises:
      FileNotFoundError, ValueError: files missing, broken, or of another architecture.
    """
    path = folder / "config.json"
    if path.is_file() and read_json(path).get("model_type") == "gpt2":
        return hub.load_decoder(folder, hub.read_decoder_config(folder))
    return hub.load_classifier(folder, hub.read_config(folder), outputs, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Base:
    """A pre-trained model with the fingerprint that adapters know it by."""

    model: nnx.Module
    fingerprint: str


@functools.lru_cache(maxsize=1)
def base(name: str, outputs: int) -> Base:
    """The model `name` (see `hub.find`), read once for several adapters."""
    with in_host_memory():
        model = load(hub.find(name), outputs)
        return Base(model, adapters.fingerprint(adapters.base_parameters(model, hub.HEAD)))


def adapted(name: str, adapter: Adapter, where: str) -> nnx.Module:
    """The model `name` with an adapter on it, loaded strictly.

    Args:
      name: as in `hub.find`.
      adapter: from `load_adapter`.
      where: name of the adapter, for messages.

    Raises:
      FileNotFoundError, ValueError: the model cannot be read, or it is not the adapter's base.
    """
    bias = adapter.values.get("head/output/bias")
    own = base(name, 2 if bias is None else len(bias))
    with in_host_memory():
        inserted = adapter.method.insert(own.model, jax.random.key(0))
        labels = adapter.method.labels(inserted)
        structure, trainable, frozen = partition.split(inserted, labels)
        values = adapters.apply_adapter(adapter, trainable, own.fingerprint, where)
        return partition.join(structure, values, frozen)
