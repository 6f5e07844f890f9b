"""AdaLoRA's update: an update in the form of a singular value decomposition (Zhang et al. 2023, 2303.10512).

    W + scale * A diag(e) B

Section 3.1 of that paper writes P diag(L) Q. Which singular values train on and which are zero is the
matter of the optimizer, see `lora_jax.optimizers.adalora`; here all of them are numbers.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax.low_rank import contraction
from lora_jax.low_rank.adalora_settings import AdaLoRASettings
from lora_jax.low_rank.computed_factors import typical_size
from lora_jax.low_rank.updates import FactorsUpdate
from lora_jax.low_rank.weights import WeightView

_STD = 0.02  # of both factors at the start, as in PEFT


class AdaLoRAUpdate(FactorsUpdate):
    """Two factors and the singular values between them.

    Attributes:
      a: (*stack, *batch, *inputs, rank), the left singular vectors.
      e: (*stack, *batch, rank), the singular values, zero at the start.
      b: (*stack, *batch, rank, *outputs), the right singular vectors.
      scale: alpha / rank, nearly; see `AdaLoRASettings.scale`.
    """

    def __init__(self, a: Array, e: Array, b: Array, *, scale: float, dropout: float):
        self.a = nnx.LoRAParam(a)
        self.e = nnx.LoRAParam(e)
        self.b = nnx.LoRAParam(b)
        self.scale = scale
        self.dropout = dropout

    @classmethod
    def create(
        cls, weight: WeightView, settings: AdaLoRASettings, key: Key[Array, ""], path: str
    ) -> AdaLoRAUpdate:
        """A new update of random vectors whose singular values are zero.

        Raises:
          ValueError: the rank is larger than the matrix.
        """
        roles = weight.roles
        batch, inputs, outputs = roles.sizes(weight.shape)
        limit = min(math.prod(inputs), math.prod(outputs))
        rank = contraction.check_rank(settings.rank, limit, path)
        shapes = contraction.factor_shapes(roles, weight.shape, rank)
        a, b = (
            contraction.initial_values(own, shape, rank, "gaussian", _STD)
            for own, shape in zip(jax.random.split(key), shapes, strict=True)
        )
        e = jnp.zeros((*batch, rank), jnp.float32)
        update = cls(a, e, b, scale=settings.scale, dropout=float(settings.dropout))
        weight.layout.give(update.a, (*roles.batch, *roles.inputs, None))
        weight.layout.give(update.e, (*roles.batch, None))
        weight.layout.give(update.b, (*roles.batch, None, *roles.outputs))
        return update

    def restart(self, weight: WeightView) -> None:
        """Sets the singular values to zero, in place."""
        self.e[...] = jnp.zeros_like(self.e[...])

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random values, in place, whose product is a share of the weight."""
        fan_in = math.prod(weight.roles.sizes(weight.shape)[1])
        size = typical_size(weight)
        key_a, key_e, key_b = jax.random.split(key, 3)
        std_b = share * size * math.sqrt(fan_in / self.rank) / self.scale
        self.a[...] = jax.random.normal(key_a, self.a.shape) / math.sqrt(fan_in)
        self.e[...] = jax.random.normal(key_e, self.e.shape)
        self.b[...] = std_b * jax.random.normal(key_b, self.b.shape)

    @property
    def rank(self) -> int:
        """Number of singular values, zeros included."""
        return self.e.shape[-1]

    def factors(self, weight: WeightView) -> tuple[Float[Array, ...], Float[Array, ...]]:
        """A diag(e) and B."""
        a, e = self.a[...], self.e[...]
        batch = e.shape[:-1]
        between = (1,) * (a.ndim - e.ndim)  # the axes of the inputs
        return a * e.reshape(*batch, *between, self.rank), self.b[...]
