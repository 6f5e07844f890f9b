"""Bottleneck adapters: small trainable layers at the residuals of a Transformer's sublayers.

Where the paper's baselines have them (section 5.1; the NLU code of microsoft/LoRA), with
f(h) = up(activation(down(h))) and out the sublayer's output after its own dropout:

    houlsby   residual(x, out + f(out))                  Houlsby et al. 2019
    pfeiffer  residual(x, out + f(residual(x, out)))     Pfeiffer et al. 2021
    lin       y + f(LayerNorm(y)), y = residual(x, out)  Lin et al. 2020, after a whole block

`residual` is the model's own: LayerNorm(x + out) in BERT and RoBERTa, x + out in GPT-2. The adapted
sublayer is the same object with a child `adapter`, its class a subclass of the original.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import partition
from lora_jax.checks import integer, not_negative
from lora_jax.models.sublayer import Sublayer
from lora_jax.sharding.axes import Axes, named
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import Inserted, own_modules

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
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


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
        """See the module's docstring."""
        return super().residual(x, out + self.adapter(out))


class Pfeiffer(Sublayer):
    """Mixin: the adapter reads what the residual would give; the residual then runs again."""

    adapter: Bottleneck

    def residual(self, x: Array, out: Array) -> Array:
        """See the module's docstring."""
        return super().residual(x, out + self.adapter(super().residual(x, out)))


class Lin(Sublayer):
    """Mixin: the adapter follows the residual."""

    adapter: Bottleneck

    def residual(self, x: Array, out: Array) -> Array:
        """See the module's docstring."""
        y = super().residual(x, out)
        return y + self.adapter(y)


_PLACES: Mapping[str, type[Sublayer]] = {"houlsby": Houlsby, "pfeiffer": Pfeiffer, "lin": Lin}


@functools.cache  # one class per pair: equal models have equal graph definitions
def _form(place: Any, base: Any) -> Any:
    return type(base)(f"{place.__name__}{base.__name__}", (place, base), {})


@dataclasses.dataclass(frozen=True)
class BottleneckInsertion:
    """Gives every sublayer whose path matches an adapter.

    Attributes:
      targets: regular expression for the whole paths of `Sublayer` modules.
      place: see the module's docstring.
      size: width of the bottleneck, r in the paper's counts.
      activation: nonlinearity.
      std: kernels start at N(0, std^2), biases at zero, so a model starts near the pre-trained one:
        what an adapter adds is of the order of std^2 sqrt(width size) times its input.
    """

    targets: str
    place: Place
    size: int
    activation: Activation
    std: float

    def __post_init__(self) -> None:
        integer("an adapter's size", self.size)
        not_negative("std", self.std)
        if not isinstance(self.targets, str):
            raise ValueError(f"targets must be one regular expression, got {self.targets!r}")
        for name, known in (("place", _PLACES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {sorted(known)}, got {getattr(self, name)!r}"
                )

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Adds the adapters, in place."""
        found = self._find(model)
        for path, module in found.items():
            norm = getattr(module, "norm", None)
            if not isinstance(module, Sublayer) or getattr(norm, "scale", None) is None:
                raise TypeError(
                    f"{path} is a {type(module).__module__}.{type(module).__name__}, which has no "
                    "residual to put an adapter at. Subclass lora_jax.models.sublayer.Sublayer (or "
                    "PreNorm, PostNorm), call self.residual(x, out) in it, and give it a `norm` with "
                    "a scale, which tells the width"
                )
            if hasattr(module, "adapter"):
                raise ValueError(f"{path} has an adapter already; one per sublayer")
        for path, module in found.items():
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            module.adapter = self._new(module, own)
            base: Any = type(module)
            form = _form(_PLACES[self.place], base)
            object.__setattr__(module, "__class__", form)  # not an attribute: NNX must not track it

    def _find(self, model: nnx.Module) -> dict[str, Any]:
        modules = own_modules(model)
        found = {p: m for p, m in modules.items() if re.fullmatch(self.targets, p)}
        if not found:
            raise partition.no_match_error("adapter", self.targets, list(modules))
        return found

    def _new(self, sublayer: Sublayer, key: Key[Array, ""]) -> Bottleneck:
        assert sublayer.norm.scale is not None
        *stack, width = sublayer.norm.scale.shape
        keys = jax.random.split(key)

        def affine(key: Array, inputs: int, outputs: int, axes: Axes) -> Affine:
            kernel = self.std * jax.random.normal(key, (*stack, inputs, outputs), jnp.float32)
            return Affine(kernel, jnp.zeros((*stack, outputs), jnp.float32), axes)

        down = affine(keys[0], width, self.size, ("embed", "rank"))
        up = affine(keys[1], self.size, width, ("rank", "embed"))
        adapter = Bottleneck(down, up, self.activation)
        if self.place == "lin":
            shape = (*stack, width)
            adapter.norm = Norm(jnp.ones(shape), jnp.zeros(shape), sublayer.norm.epsilon)
        return adapter

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapter."""
        return [
            MatchedLayer(
                self.targets,
                path,
                module.adapter.down.kernel.shape,
                f"{self.place} adapter, size {self.size}, {self.activation}",
                partition.count(partition.parameters(module.adapter)),
            )
            for path, module in self._find(model).items()
        ]
