"""DoRA: weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv 2402.09353).

    m * (W + scale * A B) / ||W + scale * A B||

The norm is taken over the inputs of every output; m, the magnitude, starts as ||W|| and trains besides
A and B. The norm counts as a constant for the gradient (section 4.3 of that paper).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Num

from lora_jax.low_rank import contraction
from lora_jax.low_rank.pairs import LowRankUpdate
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.updates import BaseCall
from lora_jax.low_rank.weights import WeightView


class DoRAUpdate(LowRankUpdate):
    """A factor pair with trained magnitudes.

    Attributes:
      magnitude: (*stack, *batch, *outputs), one value for every output of every map.
    """

    magnitude: nnx.LoRAParam[Array]

    @classmethod
    def create(
        cls, weight: WeightView, settings: LoRASettings, key: Key[Array, ""], path: str
    ) -> DoRAUpdate:
        """A new pair whose product is zero, and the norms of the weight. See the base class."""
        update = super().create(weight, settings, key, path)
        roles = weight.roles
        batch, _, outputs = roles.sizes(weight.shape)
        abstract = weight.layer.is_abstract()  # then the shape is all that is asked for
        norms = jnp.zeros(batch + outputs) if abstract else update.norms(weight)
        update.magnitude = nnx.LoRAParam(norms)
        weight.layout.give(update.magnitude, roles.batch + roles.outputs)
        return update

    def restart(self, weight: WeightView) -> None:
        """Sets the product to zero and the magnitudes to the weight's norms, in place."""
        super().restart(weight)
        self.magnitude[...] = self.norms(weight)

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random factors, in place, and magnitudes that differ from the weight's norms."""
        key, key_magnitude = jax.random.split(key)
        super().randomise(weight, key, share)
        shape = self.magnitude.shape
        near_one = 1 + share * jax.random.uniform(key_magnitude, shape, minval=-1, maxval=1)
        self.magnitude[...] = self.norms(weight) * near_one

    def norms(self, weight: WeightView) -> Float[Array, ...]:
        """||W + scale * A B|| over the inputs, (*stack, *batch, *outputs), without the d x d product.

        ||W||^2 + 2 scale <W, A B> + scale^2 ||A B||^2 for every output; only W itself is as large as W.
        """
        roles = weight.roles
        batch, _, outputs = roles.sizes(weight.shape)

        def norms(whole: Array, factor_a: Array, factor_b: Array) -> Array:
            w = roles.to_matrices(whole)
            a, b = contraction.as_matrices(roles, factor_a, factor_b)
            exact = jax.lax.Precision.HIGHEST
            mixed = jnp.einsum("mir,mio->mro", a, w, precision=exact)
            gram = jnp.einsum("mir,mis->mrs", a, a, precision=exact)
            squared = jnp.sum(w * w, axis=1) + jnp.sum(
                b * (2 * mixed + jnp.einsum("mrs,mso->mro", gram, b, precision=exact)), axis=1
            )
            return jnp.sqrt(jnp.maximum(squared, 0)).reshape(batch + outputs)

        a, b = self.factors(weight)
        axes = roles.batch + roles.outputs
        return weight.automatically(norms, axes, weight.values(), a * self.scale, b)

    def ratio(self, weight: WeightView) -> Float[Array, ...]:
        """m / ||W + scale * A B||, (*stack, *batch, *outputs); 1 where the norm is 0."""
        norms = jax.lax.stop_gradient(self.norms(weight))
        return jnp.where(norms > 0, self.magnitude[...] / jnp.where(norms > 0, norms, 1), 1)

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """m / norm * (x W + scale * x A B) + bias.

        With dropout only what differs from the base layer sees the dropped x, as in PEFT:
        x W + (m / norm - 1) * x' W + m / norm * scale * x' A B + bias.
        """
        outputs, dropped = base(inputs), self.drop(inputs)
        seen = outputs if dropped is inputs else base(dropped)
        ratio = weight.on_outputs(self.ratio(weight), outputs.ndim)
        low = self.low_rank_output(weight, dropped, outputs)
        return rescaled(weight, outputs, seen, low, ratio)

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """(q * m / norm) (W + scale * A B)^T."""
        if self.lookup_only:
            return base(query)
        return super().attend(weight, query * self.ratio(weight).astype(query.dtype), base)

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """m / norm * (W + scale * A B)."""
        roles, shape = weight.roles, weight.shape

        def rescaled(merged: Array, ratio: Array) -> Array:
            matrices = roles.to_matrices(merged)
            return roles.from_matrices(
                ratio.reshape(len(matrices), 1, matrices.shape[-1]) * matrices, shape
            )

        every = tuple(range(roles.ndim))
        return weight.automatically(rescaled, every, super().merged(weight), self.ratio(weight))

    def delta(self, weight: WeightView) -> Float[Array, ...]:
        """What differs from the pre-trained weight: direction and magnitude."""
        return self.merged(weight) - weight.values()


def rescaled(
    weight: WeightView,
    outputs: Float[Array, ...],
    seen: Float[Array, ...],
    low: Float[Array, ...],
    ratio: Float[Array, ...],
) -> Float[Array, ...]:
    """A layer's outputs, of which the ratio rescales what its weight and the factor pair give, not the bias.

    Args:
      weight: of the layer.
      outputs: of the pre-trained layer.
      seen: the same of the inputs that the factor pair saw.
      low: what the factor pair gives.
      ratio: in a shape that broadcasts against these; where it is 1, the result is outputs + low exactly.
    """
    linear = seen
    if (bias := weight.bias_on_outputs(outputs.ndim)) is not None:
        linear = linear - bias.astype(outputs.dtype)
    return outputs + (ratio - 1).astype(low.dtype) * linear + ratio.astype(low.dtype) * low
