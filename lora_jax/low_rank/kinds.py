"""What layers of one kind share in Flax NNX and in Flax Linen: roles of axes, and the way through A and B.

The first product, of the inputs with A, is the layer's own (`own_product`): its promotion of types, its
`dot_general`, padding and strides, so a `dot_general` that scales or quantises its inputs acts once, as it
does in the base layer. The second, with B, is a plain product.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Contraction, on_axes
from lora_jax.low_rank.products import with_factor
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
        return with_factor(self.own_product, inputs, a, features=1, apart=True)

    def second_product(
        self, low: Float[Array, "... rank"], b: Float[Array, "rank outputs"]
    ) -> Float[Array, "... outputs"]:
        """A plain product."""
        product = functools.partial(jnp.matmul, precision=self.second_precision())
        return with_factor(product, low, b, features=1)


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
        last = self.by_token() and set(axes.tolist()) == set(range(-n_in, 0))
        features = n_in if last else 0
        return with_factor(self.own_product, inputs, a, features=features, apart=True)

    def second_product(
        self, low: Inexact[Array, "... rank"], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """A plain product; batch axes come first."""
        n_batch, precision = self.axis_counts()[0], self.second_precision()
        lead = tuple(range(n_batch))

        def product(x: Array, b: Array) -> Array:
            contracted = ((x.ndim - 1,), (n_batch,))
            return jax.lax.dot_general(x, b, (contracted, (lead, lead)), precision=precision)

        return with_factor(product, low, b, features=0 if n_batch else 1)


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
