"""Biases for linear layers that have none, as those of Llama: BitFit has something to train there."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import surgery
from lora_jax.errors import InputError, InputTypeError
from lora_jax.low_rank import targets
from lora_jax.method import Insertion
from lora_jax.quantisation.weight import PackedWeight
from lora_jax.sharding.axes import named, names
from lora_jax.summary import MatchedLayer

NAME = "added"  # of the module that a layer gets
_KINDS = (nnx.Linear, nnx.LinearGeneral)


class AddedBias(surgery.Inserted):
    """A bias that starts at 0: (*stack, *outputs of the layer)."""

    def __init__(self, shape: tuple[int, ...], axis: str | None):
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32), **named(axis))


class WithBias(nnx.Module):
    """Mixin: a linear layer that adds a bias of its own."""

    added: AddedBias
    kernel: Any  # of the layer

    def __call__(self, inputs: Float[Array, ...], *args: Any, **kwargs: Any) -> Array:
        """The layer's output and the bias."""
        out: Array = super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]
        return out + self.added.bias[...].astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class BiasInsertion(Insertion):
    """Gives every `nnx.Linear` and `nnx.LinearGeneral` without a bias one; output embeddings are heads."""

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Adds the biases, in place."""
        found = {
            path: module
            for path, module in surgery.pretrained_modules(model).items()
            if isinstance(module, _KINDS) and module.bias is None and not targets.is_head(path)
        }
        if not found:
            raise InputError(
                f"bitfit(add=True): every linear layer of the {type(model).__name__} has a bias "
                "already; leave `add` out"
            )
        for path, module in found.items():
            if surgery.is_changed(module) or surgery.original_class(module) not in _KINDS:
                raise InputTypeError(
                    f"{path} is a {type(module).__name__}; a bias is added to a plain layer only. In a "
                    "combination of methods bitfit(add=True) cannot share a layer with another one"
                )
            module.added = _bias_of(module)  # type: ignore[union-attr]
            surgery.become(module, surgery.extended(WithBias, type(module)))

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per layer."""
        return [
            MatchedLayer(
                rule="layers without a bias",
                path=path,
                shape=module.kernel.shape,
                how="a bias that starts at 0",
                parameters=math.prod(module.added.bias.shape),
            )
            for path, module in surgery.pretrained_modules(model).items()
            if isinstance(module, WithBias)
        ]


def _bias_of(layer: Any) -> AddedBias:
    outputs, kernel = _sizes(layer.out_features), layer.kernel
    stack = kernel.shape[: len(kernel.shape) - len(_sizes(layer.in_features)) - len(outputs)]
    axis = (kernel.layout().names if isinstance(kernel, PackedWeight) else names(kernel))[-1]
    return AddedBias((*stack, *outputs), "width" if axis == "embed" else axis)


def _sizes(features: int | tuple[int, ...]) -> tuple[int, ...]:
    return features if isinstance(features, tuple) else (features,)
