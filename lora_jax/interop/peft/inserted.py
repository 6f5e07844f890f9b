"""What the adapted model shows of an adapter and its folder does not: settings, and values from seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax import nnx

from lora_jax import state
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.method import Method
from lora_jax.methods.updates import UpdateInsertion


@dataclasses.dataclass(frozen=True)
class Inserted:
    """What a method inserted into a model.

    Attributes:
      settings: of every adapted layer, by path.
      fixed: values by path that it inserted and that never train.
    """

    settings: Mapping[str, UpdateSettings]
    fixed: Arrays


def inserted_of(adapted: nnx.Module, method: Method) -> Inserted:
    """What a method inserted into a model.

    Args:
      adapted: the model, with the adapter's values.
      method: of the adapter.
    """
    settings: dict[str, UpdateSettings] = {}
    for insertion in method.insertions:
        if isinstance(insertion, UpdateInsertion):
            chosen = insertion.choose_in(adapted).layers
            settings |= {path: layer.settings for path, layer in chosen.items()}
    fixed = {path: np.asarray(value) for path, value in state.values(adapted, "fixed").items()}
    return Inserted(settings, fixed)
