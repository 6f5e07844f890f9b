"""Switching the updates of an adapted model off and on again, as for a reference model in one memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flax import nnx

from lora_jax.arguments import MODEL, Model, takes
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import nothing_inserted
from lora_jax.low_rank.updates import WeightUpdate


@takes(model=MODEL)
def enable(model: nnx.Module, enabled: bool = True) -> None:
    """Switches the updates of all adapted layers on, or off, in place.

    Switched off, every adapted layer is the pre-trained one; its factors stay. Whether they are on is
    part of the program and not of the data: each state is compiled once. Bottleneck adapters and
    special tokens cannot be switched.

    Raises:
      ValueError: the model has no adapted layer.
    """
    layers = adapted_layers(model)
    if not layers:
        raise nothing_inserted()
    for layer in layers.values():
        _set(layer.lora, enabled)


@takes(model=MODEL)
@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """The model with its updates switched off; afterwards they are as they were.

        with lora_jax.disabled(model) as base:
            reference = base(x)

    Raises:
      ValueError: the model has no adapted layer.
    """
    before = {path: layer.lora.enabled for path, layer in adapted_layers(model).items()}
    enable(model, False)
    try:
        yield model
    finally:
        for path, layer in adapted_layers(model).items():
            _set(layer.lora, before[path])


def _set(update: WeightUpdate, enabled: bool) -> None:
    """Switched on it has no attribute, and the model its first graph: nothing is compiled again."""
    if enabled and "enabled" in vars(update):
        del update.enabled
    elif not enabled:
        update.enabled = False
