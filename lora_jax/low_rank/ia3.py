"""IA3: a learned vector scales what a layer gives, or what it gets (Liu et al. 2022, arXiv 2205.05638).

    y = l * (x W + b)    keys and values of an attention (section 3.3 of that paper)
    y = (l * x) W + b    the second layer of a feed-forward block, whose inputs are the activations

l starts at one. There is no rank, no scale and no dropout. As in PEFT the bias is scaled with the outputs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact, Key, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Shape, on_axes
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.low_rank.updates import BaseCall, PartUpdate
from lora_jax.low_rank.weights import WeightView


@dataclasses.dataclass(frozen=True)
class IA3Settings(UpdateSettings):
    """Which side of a layer, or of parts of a fused one, is scaled.

    Attributes:
      of_inputs: whether it is the inputs; `lora_jax.ia3` sets it for the layers of `feed_forward`.
    """

    rank: int = 1
    alpha: float = 1.0
    of_inputs: bool = False

    without: ClassVar[tuple[str, ...]] = (
        "rank", "alpha", "scaling", "dropout", "too_large", "of_inputs",
    )  # fmt: skip

    def __str__(self) -> str:
        parts = f" of {','.join(self.parts)} of {','.join(self.fused)}" if self.parts else ""
        return f"a factor for every {'input' if self.of_inputs else 'output'}{parts}"


class IA3Update(PartUpdate):
    """A learned vector of one weight, or of a part of a fused one.

    Attributes:
      vector: (*stack, *batch, *outputs), or of the inputs (*stack, *batch, *features); the window of a
        convolution has none of its own.
      of_inputs: whether the inputs are scaled, and not the outputs.
    """

    def __init__(self, vector: Array, *, of_inputs: bool):
        self.vector = nnx.LoRAParam(vector)
        self.of_inputs = of_inputs

    @classmethod
    def create(
        cls, weight: WeightView, settings: IA3Settings, key: Key[Array, ""], path: str
    ) -> IA3Update:
        """A new vector of ones.

        Raises:
          ValueError: the inputs are to be scaled, and are numbers of rows or are shared by the parts of
            a fused weight.
        """
        if settings.of_inputs and weight.gathers:
            raise InputError(
                f"{path or 'the layer'} looks up rows by their numbers, so its inputs cannot be scaled; "
                "leave it out of feed_forward, and its outputs are scaled"
            )
        if settings.of_inputs and settings.fused:
            raise InputError(
                f"{path}: the parts of a fused projection share their inputs, so feed_forward cannot choose "
                f"{settings.parts} among them; leave it out of feed_forward, or adapt the whole layer"
            )
        axes = _axes(weight, of_inputs=settings.of_inputs)
        ones = jnp.ones([weight.shape[axis] for axis in axes], jnp.float32)
        update = cls(ones, of_inputs=settings.of_inputs)
        weight.layout.give(update.vector, axes)
        return update

    def restart(self, weight: WeightView) -> None:
        """Sets the vector to ones, in place."""
        self.vector[...] = jnp.ones_like(self.vector[...])

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets a random vector around one, in place."""
        wide = math.sqrt(3) * share  # the width that gives a uniform distribution this size
        noise = jax.random.uniform(key, self.vector.shape, minval=-wide, maxval=wide)
        self.vector[...] = 1 + noise

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """l * (x W + b), or (l * x) W + b."""
        if self.of_inputs:
            return base(_scaled(inputs, weight.on_inputs(self.vector[...], inputs.ndim)))
        outputs = base(inputs)
        return _scaled(outputs, weight.on_outputs(self.vector[...], outputs.ndim))

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """(l * q) E^T: the logits against the table whose rows are scaled, E l."""
        return base(_scaled(query, self.vector[...]))

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """W l along its outputs, or its inputs."""
        axes, every = _axes(weight, of_inputs=self.of_inputs), tuple(range(weight.roles.ndim))

        def scaled(values: Array, vector: Array) -> Array:
            return values * on_axes(vector, axes, values.ndim)

        return weight.automatically(scaled, every, weight.values(), self.vector[...])

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """b (l - 1); None where the inputs are scaled, or without a bias."""
        bias = None if self.of_inputs else weight.bias()
        if bias is None:
            return None
        return bias.astype(jnp.float32) * (self.vector[...] - 1)


def _axes(weight: WeightView, *, of_inputs: bool) -> Shape:
    """Axes of the weight's view that the vector has."""
    roles = weight.roles
    return roles.batch + (weight.feature_axes if of_inputs else roles.outputs)


def _scaled(values: Num[Array, ...], vector: Float[Array, ...]) -> Inexact[Array, ...]:
    """Activations times the vector, multiplied in float32 and given in their own type."""

    def product(values: Array, vector: Array) -> Array:
        scaled = values * vector
        return scaled.astype(values.dtype) if jnp.issubdtype(values.dtype, jnp.inexact) else scaled

    # The backward pass keeps the activations in their own type, and not in that of the product.
    result: Array = jax.checkpoint(product)(values, vector)
    return result
