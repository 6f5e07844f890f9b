"""VeRA: vector-based random matrix adaptation (Kopiczko et al. 2023, arXiv 2310.11454, section 3.1).

    W + A diag(d) B diag(b),   y = x W + ((x A) * d) B * b

A and B are random, frozen and shared by all layers; each layer trains the vectors d and b. A layer that is
smaller than another has the leading rows of the other's A, and columns of its B, as in PEFT.

Here every layer holds its copy, since the layers of a scanned stack can reach nothing outside. The copies
are equal because each value comes from the seed and its own row and column alone. They are not saved.

Sizes are PEFT's (`_kaiming_init`): A is uniform within sqrt(6 / inputs), B within sqrt(6 / rank), where
`inputs` are those of the largest layer. What PEFT has not: convolutions, whose inputs are those of a window,
and tables of embeddings. A table's A is within sqrt(6), since a lookup is a sum of one row.
"""

from __future__ import annotations

import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import threefry
from lora_jax.low_rank.computed_factors import typical_size
from lora_jax.low_rank.updates import FactorsUpdate
from lora_jax.low_rank.vera_settings import VeRASettings
from lora_jax.low_rank.weights import WeightView
from lora_jax.state import Seeded

Own = TypeVar("Own", bound="VeRAUpdate")


class VeRAUpdate(FactorsUpdate):
    """The vectors of one weight, and its copy of the shared matrices.

    Attributes:
      lambda_d: d, (*stack, *batch, rank).
      lambda_b: b, (*stack, *batch, *outputs).
      shared_a: A, (*stack, *batch, *inputs, rank), equal for all maps.
      shared_b: B, (*stack, *batch, rank, *outputs), equal for all maps.
      d_initial: what d starts with; b starts at zero.
    """

    lambda_d: nnx.LoRAParam[Array]
    lambda_b: nnx.LoRAParam[Array]
    shared_a: Seeded[Array]
    shared_b: Seeded[Array]

    def __init__(self, d: Array, b: Array, shared_a: Array, shared_b: Array, d_initial: float):
        self.lambda_d = nnx.LoRAParam(d)
        self.lambda_b = nnx.LoRAParam(b)
        self.shared_a = Seeded(shared_a)
        self.shared_b = Seeded(shared_b)
        self.d_initial = d_initial

    @classmethod
    def create(
        cls: type[Own], weight: WeightView, settings: VeRASettings, key: Key[Array, ""], path: str
    ) -> Own:
        """A new update whose b is zero, so that it changes nothing. The key has no effect."""
        roles, rank = weight.roles, settings.rank
        batch, inputs, outputs = roles.sizes(weight.shape)
        fan_in = 1 if weight.gathers else settings.fan_in or math.prod(inputs)
        a, b = shared_matrices(settings.seed, math.prod(inputs), math.prod(outputs), rank, fan_in)
        update = cls(
            jnp.full((*batch, rank), settings.d_initial, jnp.float32),
            jnp.zeros(batch + outputs, jnp.float32),
            jnp.broadcast_to(a.reshape(*inputs, rank), (*batch, *inputs, rank)),
            jnp.broadcast_to(b.reshape(rank, *outputs), (*batch, rank, *outputs)),
            float(settings.d_initial),
        )
        update.dropout = float(settings.dropout)
        weight.layout.give(update.lambda_d, (*roles.batch, None))
        weight.layout.give(update.lambda_b, (*roles.batch, *roles.outputs))
        weight.layout.give(update.shared_a, (*roles.batch, *roles.inputs, None))
        weight.layout.give(update.shared_b, (*roles.batch, None, *roles.outputs))
        return update

    def restart(self, weight: WeightView) -> None:
        """Sets d to its start and b to zero, in place."""
        self.lambda_d[...] = jnp.full_like(self.lambda_d[...], self.d_initial)
        self.lambda_b[...] = jnp.zeros_like(self.lambda_b[...])

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random vectors, in place, with which the update is about a share of the weight."""
        rank = self.lambda_d.shape[-1]
        size = typical_size(weight)
        of_a, of_b = (jnp.sqrt(jnp.mean(m[...] ** 2)) for m in (self.shared_a, self.shared_b))
        key_d, key_b = jax.random.split(key)
        self.lambda_d[...] = jax.random.normal(key_d, self.lambda_d.shape)
        std = share * size / (of_a * of_b * math.sqrt(rank))
        self.lambda_b[...] = std * jax.random.normal(key_b, self.lambda_b.shape)

    def factors(self, weight: WeightView) -> tuple[Float[Array, ...], Float[Array, ...]]:
        """A and diag(d) B diag(b).

        Both vectors are on B's side: so A is a constant, of which the backward pass computes no gradient,
        and a table's is not multiplied as a whole for some rows.
        """
        _, _, outputs = weight.roles.sizes(weight.shape)
        at = len(weight.roles.batch)
        behind = tuple(range(at + 1, at + 1 + len(outputs)))
        d = jnp.expand_dims(self.lambda_d[...], behind)
        b = jnp.expand_dims(self.lambda_b[...], at)
        return self.shared_a[...], d * self.shared_b[...] * b


def shared_matrices(
    seed: int, inputs: int, outputs: int, rank: int, fan_in: int
) -> tuple[Float[Array, "{inputs} {rank}"], Float[Array, "{rank} {outputs}"]]:
    """The leading rows of A and columns of B, whose values do not depend on how many these are.

    Args:
      seed: of both.
      inputs: rows of A.
      outputs: columns of B.
      rank: columns of A and rows of B; it sets the size of B, too.
      fan_in: number of inputs that the size of A is for.
    """
    key = jax.random.key(seed, impl="threefry2x32")  # whatever JAX's default is
    of_a, of_b = (jnp.float32(math.sqrt(6 / fan)) for fan in (fan_in, rank))
    a = _uniform(jax.random.fold_in(key, 0), of_a, inputs, rank)
    return a, _uniform(jax.random.fold_in(key, 1), of_b, outputs, rank).T


@functools.partial(jax.jit, static_argnames=("rows", "rank"))
def _uniform(
    key: Key[Array, ""], bound: Float[Array, ""], rows: int, rank: int
) -> Float[Array, "{rows} {rank}"]:
    """Values in [-bound, bound), each from the key and its own row and column: the counters of the hash."""
    levels = (threefry.words(key, (rows, rank)) >> 8).astype(jnp.float32)
    return bound * (levels * 2.0**-23 - 1)
