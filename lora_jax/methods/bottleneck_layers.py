"""The modules of bottleneck adapters, and the sublayers that have one.

Where the paper's baselines have them (section 5.1; the NLU code of microsoft/LoRA), with
f(h) = up(activation(down(h))) and out the sublayer's output after its own dropout:

    houlsby   residual(x, out + f(out))                  Houlsby et al. 2019
    pfeiffer  residual(x, out + f(residual(x, out)))     Pfeiffer et al. 2021
    lin       y + f(LayerNorm(y)), y = residual(x, out)  Lin et al. 2020, after a whole block

`residual` is the model's own: LayerNorm(x + out) in BERT and RoBERTa, x + out in GPT-2. The adapted
sublayer is the same object with a child `adapter`, its class a subclass of the original.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.low_rank.products import with_factor
from lora_jax.models.sublayer import Sublayer
from lora_jax.sharding.axes import Axes, named
from lora_jax.surgery import Inserted

Activation = Literal["swish", "relu", "gelu"]
Place = Literal["houlsby", "pfeiffer", "lin"]
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class Affine(Inserted):
    """x W + b in the type of x; `axes` are the logical axes of W."""

    def __init__(self, kernel: Array, bias: Array, axes: Axes = (None, None)):
        self.kernel = nnx.Param(kernel, **named(*axes))
        self.bias = nnx.Param(bias, **named(None))

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Maps the last axis."""
        kernel = self.kernel[...].astype(x.dtype)
        return with_factor(jnp.matmul, x, kernel, features=1) + self.bias[...].astype(x.dtype)


class Norm(Inserted):
    """LayerNorm over the last axis, in the type of x."""

    def __init__(self, scale: Array, bias: Array, epsilon: float):
        self.scale = nnx.Param(scale, **named("width"))
        self.bias = nnx.Param(bias, **named("width"))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Normalises in float32."""
        y = jax.nn.standardize(x.astype(jnp.float32), epsilon=self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Bottleneck(Inserted):
    """up(activation(down(h))), down(LayerNorm(h)) if there is a `norm`; h itself is not added.

    Attributes:
      down: kernel (*stack, width, size) and bias (*stack, size).
      up: kernel (*stack, size, width) and bias (*stack, width).
      norm: a trainable LayerNorm, or absent.
      activation: name of the nonlinearity.
    """

    norm: Norm

    def __init__(self, down: Affine, up: Affine, activation: Activation):
        self.down = down
        self.up = up
        self.activation = activation

    def __call__(self, h: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """What the adapter adds."""
        inner = self.norm(h) if hasattr(self, "norm") else h
        return self.up(ACTIVATIONS[self.activation](self.down(inner)))


class Houlsby(Sublayer):
    """Mixin: the adapter reads the sublayer's output."""

    adapter: Bottleneck

    def residual(self, x: Array, out: Array) -> Array:
        """Joins input and output around the adapter; see the module's docstring."""
        return super().residual(x, out + self.adapter(out))


class Pfeiffer(Sublayer):
    """Mixin: the adapter reads what the residual would give; the residual then runs again."""

    adapter: Bottleneck

    def residual(self, x: Array, out: Array) -> Array:
        """Joins input and output around the adapter; see the module's docstring."""
        return super().residual(x, out + self.adapter(super().residual(x, out)))


class Lin(Sublayer):
    """Mixin: the adapter follows the residual."""

    adapter: Bottleneck

    def residual(self, x: Array, out: Array) -> Array:
        """Joins input and output around the adapter; see the module's docstring."""
        y = super().residual(x, out)
        return y + self.adapter(y)


PLACES: Mapping[str, type[Sublayer]] = {"houlsby": Houlsby, "pfeiffer": Pfeiffer, "lin": Lin}
