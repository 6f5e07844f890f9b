"""LoHa: an update that is the elementwise product of two low-rank products.

    W + scale * (A1 B1) * (A2 B2)

Hyeon-Woo et al. 2021 (FedPara, arXiv 2108.06098, proposition 1): with twice LoRA's parameters its rank is up
to r^2. The product is that of two factors again, of rank r^2:

    A = A1 and A2 multiplied row by row:        A[i, (p, q)] = A1[i, p] A2[i, q]
    B = B1 and B2 multiplied column by column:  B[(p, q), o] = B1[p, o] B2[q, o]

Where r^2 is more than the smaller side of the matrix, the matrix itself is less work than these.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact, Key, Num

from lora_jax.low_rank import contraction
from lora_jax.low_rank.computed_factors import identity, plain_layer, precise, typical_size
from lora_jax.low_rank.kinds import DenseKind, EmbedKind
from lora_jax.low_rank.loha_settings import LoHaSettings
from lora_jax.low_rank.updates import FactorsUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.sharding.layout import automatically, sharding_of


class LoHaUpdate(FactorsUpdate):
    """The two factor pairs of one weight.

    Attributes:
      a1, a2: (*stack, *batch, *inputs, rank); a2 starts at zero.
      b1, b2: (*stack, *batch, rank, *outputs).
      alpha: the constant of LoRA's section 4.1.
      scale: alpha/r or alpha/sqrt(r).
    """

    def __init__(
        self,
        a1: Array,
        b1: Array,
        a2: Array,
        b2: Array,
        *,
        alpha: float,
        scale: float,
        dropout: float,
    ):
        self.a1 = nnx.LoRAParam(a1)
        self.b1 = nnx.LoRAParam(b1)
        self.a2 = nnx.LoRAParam(a2)
        self.b2 = nnx.LoRAParam(b2)
        self.alpha = alpha
        self.scale = scale
        self.dropout = dropout

    @classmethod
    def create(
        cls, weight: WeightView, settings: LoHaSettings, key: Key[Array, ""], path: str
    ) -> LoHaUpdate:
        """New pairs, of which the second is zero.

        The others are U(-1/sqrt(n), 1/sqrt(n)) with n the number of values that an output sums, as in PEFT:
        the inputs for A, the rank for B. A row of a table is looked up alone, so n is 1 for its A.

        Raises:
          ValueError: the rank is larger than the smaller side of the matrix.
        """
        roles = weight.roles
        _, inputs, outputs = roles.sizes(weight.shape)
        fan_in = math.prod(inputs)
        rank = contraction.check_rank(settings.rank, min(fan_in, math.prod(outputs)), path)
        shape_a, shape_b = contraction.factor_shapes(roles, weight.shape, rank)
        key_a, *keys_b = jax.random.split(key, 3)
        a1 = contraction.initial_values(key_a, shape_a, 1 if weight.gathers else fan_in)
        b1, b2 = (contraction.initial_values(key_b, shape_b, rank) for key_b in keys_b)
        update = cls(
            a1, b1, jnp.zeros(shape_a, jnp.float32), b2,
            alpha=float(settings.alpha), scale=settings.scale, dropout=float(settings.dropout),
        )  # fmt: skip
        for of_a, of_b in ((update.a1, update.b1), (update.a2, update.b2)):
            weight.layout.give(of_a, (*roles.batch, *roles.inputs, None))
            weight.layout.give(of_b, (*roles.batch, None, *roles.outputs))
        return update

    def restart(self, weight: WeightView) -> None:
        """Sets A2 to zero, in place."""
        self.a2[...] = jnp.zeros_like(self.a2[...])

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random values, in place, whose elementwise product is a share of the weight."""
        each = jnp.sqrt(share * typical_size(weight) / self.scale)  # of A1 B1, and of A2 B2
        std = jnp.sqrt(each / math.sqrt(self.rank))
        leaves = (self.a1, self.b1, self.a2, self.b2)
        for leaf, own in zip(leaves, jax.random.split(key, 4), strict=True):
            leaf[...] = std * jax.random.normal(own, leaf.shape)

    @property
    def rank(self) -> int:
        """Rank of each of the two products."""
        return self.a1.shape[-1]

    def is_dense(self, weight: WeightView) -> bool:
        """Whether the product is formed, because its factors would be larger."""
        _, inputs, outputs = weight.roles.sizes(weight.shape)
        return self.rank**2 > min(math.prod(inputs), math.prod(outputs))

    def factors(self, weight: WeightView) -> tuple[Float[Array, ...], Float[Array, ...]]:
        """A and B of rank r^2, or the product and an identity matrix on its smaller side."""
        roles = weight.roles
        batch, inputs, outputs = roles.sizes(weight.shape)
        count = len(batch)

        def computed(a1: Array, b1: Array, a2: Array, b2: Array) -> tuple[Array, Array]:
            if not self.is_dense(weight):
                a = a1[..., :, None] * a2[..., None, :]
                b = jnp.expand_dims(b1, count + 1) * jnp.expand_dims(b2, count)
                return a.reshape(*batch, *inputs, -1), b.reshape(*batch, -1, *outputs)
            a = matrices = self._formed(weight, a1, b1, a2, b2)
            maps, rows, columns = matrices.shape
            b = identity(maps, min(rows, columns))
            if rows < columns:
                a, b = b, a
            return a.reshape(*batch, *inputs, -1), b.reshape(*batch, -1, *outputs)

        layout = weight.layout
        shardings = (
            layout.of_axes((*roles.batch, *roles.inputs, None)),
            layout.of_axes((*roles.batch, None, *roles.outputs)),
        )
        return automatically(computed, shardings, *self._leaves())

    def _leaves(self) -> tuple[Array, Array, Array, Array]:
        return precise(self.a1), precise(self.b1), precise(self.a2), precise(self.b2)

    def _formed(
        self, weight: WeightView, a1: Array, b1: Array, a2: Array, b2: Array
    ) -> Float[Array, "maps flat_inputs flat_outputs"]:
        """(A1 B1) * (A2 B2); the backward pass forms both products again rather than keep them."""
        roles = weight.roles

        @jax.checkpoint
        def formed(a1: Array, b1: Array, a2: Array, b2: Array) -> Array:
            first = contraction.product(*contraction.as_matrices(roles, a1, b1))
            return first * contraction.product(*contraction.as_matrices(roles, a2, b2))

        result: Array = formed(a1, b1, a2, b2)
        return result

    def low_rank_output(
        self, weight: WeightView, inputs: Num[Array, ...], outputs: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """scale * x A B, in the type of the layer's outputs.

        Two kinds of layers have a shorter way: rows of a table are looked up in both pairs and then
        multiplied, and a formed product needs no identity matrix behind it.
        """
        dtype = outputs.dtype
        if (table := plain_layer(weight, EmbedKind)) is not None:

            def rows(inputs: Array, a1: Array, b1: Array, a2: Array, b2: Array) -> Array:
                first = table.low_rank_output(inputs, a1 * self.scale, b1.astype(dtype))
                return first * table.low_rank_output(inputs, a2, b2.astype(dtype))

            return automatically(rows, sharding_of(outputs), inputs, *self._leaves())
        dense = plain_layer(weight, DenseKind)
        if dense is None or not self.is_dense(weight):
            return super().low_rank_output(weight, inputs, outputs)

        def multiplied(inputs: Array, *leaves: Array) -> Array:
            product = self.scale * self._formed(weight, *leaves)[0]
            return dense.first_product(inputs, product.astype(dtype))

        return automatically(
            multiplied, sharding_of(outputs), inputs.astype(dtype), *self._leaves()
        )
