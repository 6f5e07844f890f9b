"""What layers of one kind share in Flax NNX and in Flax Linen: roles of axes, and the way through A and B.

The first product, of the inputs with A, is the layer's own (`own_product`): its promotion of types, its
`dot_general`, padding and strides, so a `dot_general` that scales or quantises its inputs acts once, as it
does in the base layer. The second, with B, is a plain product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Contraction, on_axes
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.low_rank.weights import LayerWithWeight


class Kind(LayerWithWeight):
    """Base of the kinds: what they ask of the layer they are mixed into."""

    def configured(self) -> Any:
        """The object that holds the arguments of the layer's constructor."""
        return self

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """What the layer makes of its inputs with another kernel, and without its bias.

        Args:
          inputs: of the layer.
          kernel: as the layer stores its own, with another number of outputs.
          **changes: arguments of the constructor that differ for this kernel.
        """
        raise NotImplementedError

    def second_precision(self) -> Any:
        """Precision of the product with B."""
        return getattr(self.configured(), "precision", None)


def apart(
    product: Callable[[Array, Array], Array], inputs: Num[Array, ...], a: Inexact[Array, ...]
) -> Inexact[Array, "... rank"]:
    """The product with A, apart from that with the weight.

    For GPUs XLA joins products of the same inputs, up to some thousand tokens, and copies their other
    factors together for that: all of the weight, in every call. A barrier keeps them apart there; elsewhere
    there is none. The backward pass keeps the inputs themselves, not what is behind the barrier.

    Args:
      product: of inputs and A.
      inputs: of the layer.
      a: (*batch, *inputs, rank).
    """

    def behind_barrier(inputs: Array, a: Array) -> Array:
        same = jax.lax.platform_dependent(
            inputs, cuda=jax.lax.optimization_barrier, default=lambda x: x
        )
        return product(same, a)

    result: Array = jax.checkpoint(behind_barrier)(inputs, a)
    return result


def as_rows(
    product: Callable[[Array, Array], Array],
    inputs: Num[Array, ...],
    factor: Inexact[Array, ...],
    features: int = 1,
) -> Inexact[Array, ...]:
    """The product of inputs (*tokens, *features) with a factor, with all tokens as the rows of one matrix.

    The factor's gradient is a sum over the tokens. Over several axes XLA's CPU compiler first transposes what
    is large, the layer's inputs or the gradient of its outputs, with all that is computed on the way; over one
    axis it does not. A mesh that fixes how a further axis of tokens is divided keeps the axes.

    Args:
      product: of inputs and factor, token by token.
      inputs: of the layer, or the first product.
      factor: A or B.
      features: number of the last axes that are no tokens.
    """
    tokens = inputs.ndim - features
    if tokens < 2 or any(jax.typeof(inputs).sharding.spec[1:tokens]):
        return product(inputs, factor)
    shape = inputs.shape
    outputs = product(inputs.reshape(math.prod(shape[:tokens]), *shape[tokens:]), factor)
    return outputs.reshape(*shape[:tokens], *outputs.shape[1:])


class TwoProducts(Kind):
    """Base of the kinds whose way through the factors is two products, in whose middle is (..., rank).

    A pool of adapters asks for them by themselves; only where `low_rank_output` is the one here, as another
    one may do more.
    """

    def first_product(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...]
    ) -> Inexact[Array, "... rank"]:
        """x A."""
        raise NotImplementedError

    def second_product(
        self, low: Inexact[Array, "... rank"], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """The result of `first_product` times B."""
        raise NotImplementedError

    def low_rank_output(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """Multiplies by both factors: x A B."""
        return self.second_product(self.first_product(inputs, a), b)


class DenseKind(TwoProducts):
    """A kernel (inputs, outputs) for the last axis of the inputs."""

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        return Contraction(batch=(), inputs=(0,), outputs=(1,))

    def by_token(self) -> bool:
        """Whether inputs (rows, tokens, ...) are treated token by token."""
        return True

    def first_product(
        self, inputs: Float[Array, "... inputs"], a: Float[Array, "inputs rank"]
    ) -> Float[Array, "... rank"]:
        """The layer's own product."""
        return as_rows(lambda x, a: apart(self.own_product, x, a), inputs, a)

    def second_product(
        self, low: Float[Array, "... rank"], b: Float[Array, "rank outputs"]
    ) -> Float[Array, "... outputs"]:
        """A plain product."""
        return as_rows(lambda x, b: jnp.matmul(x, b, precision=self.second_precision()), low, b)


class GeneralKind(TwoProducts):
    """A kernel (*batch, *inputs, *outputs) for chosen axes of the inputs."""

    def axis_counts(self) -> tuple[int, int, int]:
        """Numbers of batch, input and output axes of the kernel."""
        raise NotImplementedError

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        n_batch, n_in, n_out = self.axis_counts()
        axes = tuple(range(n_batch + n_in + n_out))
        return Contraction(axes[:n_batch], axes[n_batch : n_batch + n_in], axes[n_batch + n_in :])

    def on_inputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *features) in a shape that broadcasts against inputs with `ndim` axes.

        Flax sorts the contracted axes.
        """
        axes = sorted(int(axis) % ndim for axis in np.atleast_1d(self.configured().axis))
        return on_axes(values, (*range(self.axis_counts()[0]), *axes), ndim)

    def by_token(self) -> bool:
        """Whether inputs (rows, tokens, ...) are treated token by token: the last axes are contracted."""
        axes = np.atleast_1d(self.configured().axis)
        return self.axis_counts()[0] == 0 and bool((axes < 0).all())

    def first_product(
        self, inputs: Inexact[Array, ...], a: Inexact[Array, ...]
    ) -> Inexact[Array, "... rank"]:
        """The layer's own product."""
        n_in, axes = self.axis_counts()[1], np.atleast_1d(self.configured().axis)
        if not self.by_token() or set(axes.tolist()) != set(range(-n_in, 0)):
            return apart(self.own_product, inputs, a)
        return as_rows(lambda x, a: apart(self.own_product, x, a), inputs, a, features=n_in)

    def second_product(
        self, low: Inexact[Array, "... rank"], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """A plain product; batch axes come first."""
        n_batch, precision = self.axis_counts()[0], self.second_precision()
        lead = tuple(range(n_batch))

        def product(x: Array, b: Array) -> Array:
            contracted = ((x.ndim - 1,), (n_batch,))
            return jax.lax.dot_general(x, b, (contracted, (lead, lead)), precision=precision)

        return product(low, b) if n_batch else as_rows(product, low, b)


class EmbedKind(TwoProducts):
    """E + scale * A B with A (vocabulary, rank) gathered like E. A starts at zero, B at N(0, 1).

    `attend` (a tied output layer) uses the adapted matrix too. The branch has no dropout.
    """

    weight = "embedding"
    gathers = True

    def check(self, settings: UpdateSettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        if settings.fused:
            raise InputError("an Embed has no parts to choose; adapt the whole layer")

    def roles(self) -> Contraction:
        """Roles of the axes of the table."""
        return Contraction(batch=(), inputs=(0,), outputs=(1,))

    def by_token(self) -> bool:
        """Whether inputs (rows, tokens, ...) are treated token by token."""
        return True

    def first_product(
        self, inputs: Int[Array, ...], a: Float[Array, "vocabulary rank"]
    ) -> Float[Array, "... rank"]:
        """Looks up rows of A."""
        # Flax takes row 0 for every index when there is one row only.
        rows = jnp.zeros_like(inputs) if self.configured().num_embeddings == 1 else inputs
        return jnp.take(a, rows, axis=0)

    def second_product(
        self, low: Float[Array, "... rank"], b: Float[Array, "rank features"]
    ) -> Float[Array, "... features"]:
        """A plain product, in the type of B."""
        return low.astype(b.dtype) @ b

    def promoted(self, query: Float[Array, ...], factor: Float[Array, ...]) -> list[Array]:
        """Both in the type of `attend`, by the layer's own promotion."""
        raise NotImplementedError

    def low_rank_logits(
        self,
        query: Float[Array, "... features"],
        a: Float[Array, "vocabulary rank"],
        b: Float[Array, "rank features"],
    ) -> Float[Array, "... vocabulary"]:
        """(q B^T) A^T."""
        query, b = self.promoted(query, b)
        return (query @ b.T) @ a.T
