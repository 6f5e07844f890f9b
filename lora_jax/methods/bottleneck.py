"""Bottleneck adapters of Houlsby, Pfeiffer, Lin and AdapterDrop; see `bottleneck_layers`."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition, patterns, surgery
from lora_jax.checks import WIDEST, Integer, Real, integer, not_negative, one_of
from lora_jax.errors import InputError, InputTypeError, brief
from lora_jax.method import Insertion, Method
from lora_jax.methods import common
from lora_jax.methods.bottleneck_layers import (
    ACTIVATIONS,
    PLACES,
    Activation,
    Affine,
    Bottleneck,
    Norm,
    Place,
)
from lora_jax.methods.cuts import MOST_LAYERS, CutInsertion
from lora_jax.methods.selection import last_layers
from lora_jax.models.sublayer import Sublayer
from lora_jax.partition import Rule
from lora_jax.sharding.axes import Axes
from lora_jax.summary import MatchedLayer

MOST_SIZE = 2**16  # of a bottleneck, which is to be narrow
_RULE = Rule(".*", "adapter", inserted="adapter")


@dataclasses.dataclass(frozen=True)
class BottleneckInsertion(Insertion):
    """Gives every sublayer whose path matches an adapter.

    Attributes:
      targets: regular expression for the whole paths of `Sublayer` modules.
      place: see `bottleneck_layers`.
      size: width of the bottleneck, r in the paper's counts.
      activation: nonlinearity.
      std: kernels start at N(0, std^2), biases at zero, so a model starts near the pre-trained one:
        what an adapter adds is of the order of std^2 sqrt(width size) times its input.
    """

    targets: str
    place: Place
    size: Integer
    activation: Activation
    std: Real

    def __post_init__(self) -> None:
        integer("an adapter's size", self.size, most=MOST_SIZE)
        not_negative("std", self.std, WIDEST)
        if not isinstance(self.targets, str):
            raise InputError(f"targets must be one regular expression, got {brief(self.targets)}")
        patterns.check(self.targets, "adapter", names=True)
        one_of("place", self.place, sorted(PLACES))
        one_of("activation", self.activation, sorted(ACTIVATIONS))

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Adds the adapters, in place."""
        found = self._find(model)
        for path, module in found.items():
            norm = getattr(module, "norm", None)
            if not isinstance(module, Sublayer) or getattr(norm, "scale", None) is None:
                raise InputTypeError(
                    f"{path} is a {type(module).__module__}.{type(module).__name__}, which has no "
                    "residual to put an adapter at. Subclass lora_jax.models.sublayer.Sublayer (or "
                    "PreNorm, PostNorm), call self.residual(x, out) in it, and give it a `norm` with "
                    "a scale, which tells the width"
                )
            if hasattr(module, "adapter"):
                raise InputError(f"{path} has an adapter already; one per sublayer")
        for path, module in found.items():
            adapter_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            module.adapter = self._new(module, adapter_key)
            surgery.become(module, surgery.extended(PLACES[self.place], module.__class__))

    def _find(self, model: nnx.Module) -> dict[str, Any]:
        return common.matching(model, self.targets, "adapter")

    def _new(self, sublayer: Sublayer, key: Key[Array, ""]) -> Bottleneck:
        assert sublayer.norm.scale is not None
        *stack, width = sublayer.norm.scale.shape
        keys = jax.random.split(key)

        def affine(key: Array, inputs: int, outputs: int, axes: Axes) -> Affine:
            kernel = self.std * jax.random.normal(key, (*stack, inputs, outputs), jnp.float32)
            return Affine(kernel, jnp.zeros((*stack, outputs), jnp.float32), axes)

        down = affine(keys[0], width, int(self.size), ("embed", "rank"))
        up = affine(keys[1], int(self.size), width, ("rank", "embed"))
        adapter = Bottleneck(down, up, self.activation)
        if self.place == "lin":
            shape = (*stack, width)
            adapter.norm = Norm(jnp.ones(shape), jnp.zeros(shape), sublayer.norm.epsilon)
        return adapter

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapter."""
        return [
            MatchedLayer(
                rule=self.targets,
                path=path,
                shape=module.adapter.down.kernel.shape,
                how=f"{self.place} adapter, size {self.size}, {self.activation}",
                parameters=partition.count(partition.parameters(module.adapter)),
            )
            for path, module in self._find(model).items()
        ]


def adapter_h(
    size: Integer,
    *,
    activation: Activation = "swish",
    std: Real = 0.02,
    targets: str = common.SUBLAYERS,
    head: str | None = None,
) -> Method:
    """Adapter H (Houlsby et al. 2019): after attention and after feed-forward. Group: `adapter`.

    Args:
      size: width of the bottleneck.
      activation: its nonlinearity; the public code has swish.
      std: of the kernels' initial values, see `BottleneckInsertion`.
      targets: paths of the sublayers.
      head: regular expression for the task head's leaves.
    """
    insertion = BottleneckInsertion(targets, "houlsby", size, activation, std)
    return _adapter("adapter_h", insertion, head)


def adapter_p(
    size: Integer,
    *,
    activation: Activation = "relu",
    std: Real = 0.02,
    targets: str = common.FEED_FORWARD,
    head: str | None = None,
) -> Method:
    """Adapter P (Pfeiffer et al. 2021): after feed-forward. Group: `adapter`; see `adapter_h`."""
    insertion = BottleneckInsertion(targets, "pfeiffer", size, activation, std)
    return _adapter("adapter_p", insertion, head)


def adapter_l(
    size: Integer,
    *,
    activation: Activation = "relu",
    std: Real = 0.02,
    targets: str = common.FEED_FORWARD,
    head: str | None = None,
) -> Method:
    """Adapter L (Lin et al. 2020): after the block, with its own LayerNorm; see `adapter_h`."""
    insertion = BottleneckInsertion(targets, "lin", size, activation, std)
    return _adapter("adapter_l", insertion, head)


def _adapter(name: str, insertion: BottleneckInsertion, head: str | None) -> Method:
    arguments = {
        "size": insertion.size, "activation": insertion.activation, "std": insertion.std,
        "targets": insertion.targets, "head": head,
    }  # fmt: skip
    return common.method(name, arguments, (insertion,), _RULE)


def adapter_d(
    size: Integer,
    layers: Integer,
    *,
    activation: Activation = "relu",
    std: Real = 0.02,
    head: str | None = None,
) -> Method:
    """Adapter D (AdapterDrop, Rücklé et al. 2021): Adapter P in the last `layers` layers only.

    The layers below have no adapter, so neither does training compute gradients in them.
    """
    layers = integer("layers", layers, most=MOST_LAYERS)
    arguments = {
        "size": size, "layers": layers, "activation": activation, "std": std, "head": head
    }  # fmt: skip
    targets = last_layers(layers) + "/feed_forward"
    insertion = BottleneckInsertion(targets, "pfeiffer", size, activation, std)
    return common.method("adapter_d", arguments, (CutInsertion(layers), insertion), _RULE)
