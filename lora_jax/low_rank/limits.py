"""What layers allow, seen before anything is inserted: whether they can have an update, of which rank."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from flax import nnx

from lora_jax import surgery
from lora_jax.low_rank import layers
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.fused import part_sizes
from lora_jax.low_rank.layers import LoRALayer
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.low_rank.weights import WeightView


def is_matrix(layer: nnx.Module) -> bool:
    """Whether a layer is, or can become, a LoRA layer whose weight is a matrix.

    That is any registered one but tables, whose rows are looked up, and convolutions.
    """
    kind = layers.lora_layer_of(layer)
    return kind is not None and kind.in_all_linear and not kind.gathers


def refusal(layer: nnx.Module, settings: UpdateSettings, path: str) -> str | None:
    """Why a supported layer, as it was configured and stored, can have no update; None if it can."""
    try:
        with as_lora_layer(layer, path) as lora_layer:
            layers.examine(lora_layer, settings, path)
    except ValueError as error:
        return str(error)
    return None


def rank_limit(layer: nnx.Module, settings: UpdateSettings, path: str) -> int:
    """The largest rank that buys anything: the smaller side of the matrix.

    Of a convolution it is that of a group's window; of a fused projection the least of its parts'.

    Args:
      layer: supported, adapted or not.
      settings: say which parts are adapted.
      path: of the layer, for messages.

    Raises:
      ValueError: the layer cannot have an update, or the parts do not fit.
    """
    with as_lora_layer(layer, path) as lora_layer:
        layers.examine(lora_layer, settings, path)
        return rank_limit_of(WeightView(lora_layer), settings, path)


def rank_limit_of(weight: WeightView, settings: UpdateSettings, path: str) -> int:
    """The same for a weight that is known to allow an update."""
    views = [weight]
    if settings.fused:
        total = weight.shape[weight.roles.outputs[0]]
        parts = weight.parts(part_sizes(settings, total, path))
        named = zip(settings.fused, parts, strict=True)
        views = [part for name, part in named if name in settings.parts]
    _, inputs, _ = weight.roles.sizes(weight.shape)
    outputs = min(math.prod(view.roles.sizes(view.shape)[2]) for view in views)
    return min(math.prod(inputs), outputs)


def inputs_of(layer: nnx.Module, path: str) -> int:
    """The number of inputs that one output of a layer sums over; 0 for a table, or where it is not known.

    Args:
      layer: adapted or not.
      path: of the layer, for messages.
    """
    if layers.lora_layer_of(layer) is None:
        return 0
    with as_lora_layer(layer, path) as lora_layer:
        _, inputs, _ = lora_layer.roles().sizes(lora_layer.view())
        return 0 if lora_layer.gathers else math.prod(inputs)


def stack_shape(layer: nnx.Module, settings: UpdateSettings, path: str) -> Shape:
    """Sizes of the leading axes that a stack of layers added to a supported layer's weight."""
    with as_lora_layer(layer, path) as lora_layer:
        layers.examine(lora_layer, settings, path)
        return lora_layer.stack_shape()


def weight_name(layer: nnx.Module) -> str:
    """The name of the weight of a supported layer."""
    kind = layers.lora_layer_of(layer)
    assert kind is not None
    return kind.weight


@contextlib.contextmanager
def as_lora_layer(layer: nnx.Module, path: str) -> Iterator[LoRALayer]:
    """A supported layer as its LoRA layer, for a look; then it is what it was."""
    if isinstance(layer, LoRALayer):
        yield layer
        return
    kind = layers.lora_layer_of(layer)
    assert kind is not None
    layers.refuse_names_of_attributes(layer, path)
    surgery.become(layer, kind)
    try:
        assert isinstance(layer, LoRALayer)
        yield layer
    finally:
        surgery.restore(layer)
