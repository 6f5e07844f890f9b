"""LoRA's factor pair: W + scale * A B (Hu et al. 2021, section 4.1), and its starts."""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax.errors import InputError
from lora_jax.low_rank import contraction, starts
from lora_jax.low_rank.computed_factors import typical_size
from lora_jax.low_rank.gradients import corrected
from lora_jax.low_rank.settings import STARTS, Gradient, LoRASettings
from lora_jax.low_rank.updates import BaseCall, FactorsUpdate, WeightUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.state import Fixed, Seeded

Pair = TypeVar("Pair", bound="LowRankUpdate")


class LowRankUpdate(FactorsUpdate):
    """The factor pair of one weight.

    With a start (`a_start`, `b_start`) it is W + scale * (A B - A_0 B_0), so the layer begins as the
    pre-trained one although neither factor is zero. PiSSA and others take scale * A_0 B_0 off the weight
    instead; here the base stays what it is, for all adapters, packed or not.

    Attributes:
      a: (*stack, *batch, *inputs, rank).
      b: (*stack, *batch, rank, *outputs).
      alpha: the constant of section 4.1.
      scale: alpha/r or alpha/sqrt(r).
      b_bias: (*stack, *batch, *outputs), added to x A B; only where the settings ask for it.
      lookup_only: whether a table that is the output layer too is updated for lookups only.
      gradient: what becomes of the factors' gradients, see `gradients`.
      a_start, b_start: both factors at the start; only where the settings ask for a start of both.
      gamma: of a start that the weight's gradient is to give, see `starts.lora_ga`.
    """

    lookup_only: bool = False
    gradient: Gradient = "plain"
    b_bias: nnx.LoRAParam[Array]
    a: nnx.Variable[Array]
    a_start: Fixed[Array]
    b_start: Fixed[Array]
    gamma: float

    def __init__(self, a: Array, b: Array, *, alpha: float, scale: float, dropout: float):
        self.a = nnx.LoRAParam(a)
        self.b = nnx.LoRAParam(b)
        self.alpha = alpha
        self.scale = scale
        self.dropout = dropout

    @classmethod
    def create(
        cls: type[Pair], weight: WeightView, settings: LoRASettings, key: Key[Array, ""], path: str
    ) -> Pair:
        """A new pair that changes nothing: its product is zero, or is taken off again.

        Raises:
          ValueError: the rank, alpha or dropout rate is out of range.
        """
        roles = weight.roles
        batch, inputs, outputs = roles.sizes(weight.shape)
        fan_in, fan_out = math.prod(inputs), math.prod(outputs)
        rank = contraction.check_rank(settings.rank, min(fan_in, fan_out), path)
        shape_a, shape_b = contraction.factor_shapes(roles, weight.shape, rank)
        frozen_a = settings.gradient == "lora_fa"
        if settings.init == "lora_ga" and 2 * rank > min(fan_in, fan_out):
            raise InputError(
                f"init='lora_ga' takes twice as many singular vectors as the rank, and {path or 'the layer'} "
                f"has {min(fan_in, fan_out)}; rank {rank} is too large"
            )
        if settings.init in starts.OF_WEIGHT:
            a, b = starts.of_weight(weight, settings, path)
        elif weight.gathers and not frozen_a:
            a = jnp.zeros(shape_a, jnp.float32)
            b = contraction.initial_values(key, shape_b, rank, "gaussian", std=1.0)  # as loralib
        else:
            if frozen_a:
                a = starts.seeded(settings.seed, path, shape_a, settings, fan_in)
            else:
                a = contraction.initial_values(key, shape_a, fan_in, settings.init, settings.std)
            b = jnp.zeros(shape_b, jnp.float32)
        dropout_rate = float(settings.dropout)
        pair = cls(a, b, alpha=float(settings.alpha), scale=settings.scale, dropout=dropout_rate)
        if frozen_a:
            pair.a = Seeded(a)
        if settings.gradient != "plain":
            pair.gradient = settings.gradient
        of_a, of_b = (*roles.batch, *roles.inputs, None), (*roles.batch, None, *roles.outputs)
        weight.layout.give(pair.a, of_a)
        weight.layout.give(pair.b, of_b)
        if settings.init in STARTS:
            pair.a_start, pair.b_start = Fixed(pair.a[...]), Fixed(pair.b[...])
            weight.layout.give(pair.a_start, of_a)
            weight.layout.give(pair.b_start, of_b)
        if settings.init == "lora_ga":
            pair.gamma = float(settings.gamma)
        if settings.b_bias:
            pair.b_bias = nnx.LoRAParam(jnp.zeros(batch + outputs, jnp.float32))
            weight.layout.give(pair.b_bias, (*roles.batch, *roles.outputs))
        if settings.lookup_only:
            pair.lookup_only = True
        return pair

    def restart(self, weight: WeightView) -> None:
        """Sets both factors to their start, or the one that starts at zero to zero, in place."""
        if hasattr(self, "a_start"):
            self.a[...], self.b[...] = self.a_start[...], self.b_start[...]
        else:
            zero = self.a if self.starts_with_zero_a(weight) else self.b
            zero[...] = jnp.zeros_like(zero[...])
        if hasattr(self, "b_bias"):
            self.b_bias[...] = jnp.zeros_like(self.b_bias[...])

    def starts_with_zero_a(self, weight: WeightView) -> bool:
        """Whether A is the factor that starts at zero; else it is B, if it is one at all."""
        return weight.gathers and isinstance(self.a, nnx.Param)

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random values, in place, whose product is a share of the weight."""
        fan_in = math.prod(weight.roles.sizes(weight.shape)[1])
        size = typical_size(weight)
        key_a, key_b = jax.random.split(key)
        std_b = share * size * math.sqrt(fan_in / self.rank) / self.scale
        if isinstance(self.a, nnx.Param):
            self.a[...] = jax.random.normal(key_a, self.a.shape) / math.sqrt(fan_in)
        else:  # a frozen A has the size that it has
            std_b = std_b / (jnp.sqrt(jnp.mean(self.a[...] ** 2)) * math.sqrt(fan_in))
        self.b[...] = std_b * jax.random.normal(key_b, self.b.shape)
        if hasattr(self, "b_bias"):
            of_bias = jax.random.normal(jax.random.fold_in(key, 2), self.b_bias.shape)
            self.b_bias[...] = share * size / self.scale * of_bias

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.a.shape[-1]

    @property
    def is_plain(self) -> bool:
        """Whether W + scale * A B is all that it is, whatever the scale."""
        return self.gradient == "plain" and not hasattr(self, "a_start")

    def factors(self, weight: WeightView) -> tuple[Float[Array, ...], Float[Array, ...]]:
        """A and B; with a start twice their rank: A - A_0, A_0 and B, B - B_0.

        The product of these is A B - A_0 B_0, and it is exactly zero at the start, in every type.
        """
        a, b = self.a[...], self.b[...]
        if self.gradient != "plain":
            a, b = corrected(self.gradient, weight.roles, a, b, self.scale)
        if not hasattr(self, "a_start"):
            return a, b
        a_start, b_start, at = self.a_start[...], self.b_start[...], len(weight.roles.batch)
        wide = jnp.concatenate([a - a_start, a_start], axis=-1)
        return wide, jnp.concatenate([b, b - b_start], axis=at)

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """q W^T + scale * (q B^T) A^T, without dropout; q W^T where the update is for lookups only."""
        return base(query) if self.lookup_only else super().attend(weight, query, base)

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """scale * the bias of B."""
        if not hasattr(self, "b_bias"):
            return None
        return self.scale * self.b_bias[...].astype(jnp.float32)


def pairs_of(update: WeightUpdate) -> dict[str, LowRankUpdate]:
    """Those of an update's members that are factor pairs, by the name of their part."""
    return {name: m for name, m in update.members().items() if isinstance(m, LowRankUpdate)}


def pairs_with_weights(
    update: WeightUpdate, weight: WeightView
) -> dict[str, tuple[LowRankUpdate, WeightView]]:
    """The same, each with the weight, or the part of it, that it belongs to."""
    return {
        name: (member, part)
        for name, (member, part) in update.members_with_weights(weight).items()
        if isinstance(member, LowRankUpdate)
    }
