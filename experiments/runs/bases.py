"""A pre-trained model by name, whatever its architecture, with an adapter on it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from experiments.runs import command_line
from experiments.runs.origins import base_format, check, origin
from lora_jax.adapters import Adapter, attach
from lora_jax.models import architectures, hub
from lora_jax.models.parts import FLOAT
from lora_jax.sharding.placement import in_host_memory


def load(folder: Path, outputs: int, base_format: str = FLOAT) -> nnx.Module:
    """A model of any known architecture: a decoder, or a classifier with a fresh head.

    Args:
      folder: from `hub.find`.
      outputs: of the head.
      base_format: of its matrices, see `models.base_formats`.

    Raises:
      FileNotFoundError, ValueError: files missing, broken, or of another architecture.
    """
    config = architectures.read_config(folder, base_format=base_format)
    return hub.load(folder, config, outputs, jax.random.key(0))


@functools.lru_cache(maxsize=1)
def base(name: str, outputs: int, base_format: str = FLOAT) -> nnx.Module:
    """The model `name` (see `hub.find`), read once for several adapters."""
    with in_host_memory():
        return load(hub.find(name), outputs, base_format)


def head_outputs(values: Mapping[str, np.ndarray]) -> int:
    """Outputs of the head among an adapter's values; 2 if there is none."""
    bias = values.get("head/output/bias")
    return 2 if bias is None else len(bias)


def adapted(name: str, adapter: Adapter, where: str) -> nnx.Module:
    """The model `name` with an adapter on it, loaded strictly.

    Args:
      name: as in `hub.find`.
      adapter: from `load_adapter`.
      where: name of the adapter, for messages.

    Raises:
      FileNotFoundError, ValueError: the model cannot be read, or it is not the adapter's base.
    """
    form = base_format(adapter)
    config = architectures.read_config(hub.find(name), base_format=form)
    if note := check(adapter, origin(config), where):
        command_line.say(note)
    model = base(name, head_outputs(adapter.values), form)
    with in_host_memory():
        return attach(model, adapter, hub.HEAD, where)
