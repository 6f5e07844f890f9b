"""What LoRA inserts into a layer. The inserted child owns its algebra: how the layer's output changes,
and what the merged weight is; of the layer it sees the weight and the roles of its axes
(`weights.WeightView`).

`LowRankUpdate` is LoRA's W + scale * A B. `FusedUpdate` has an update for each chosen part of a fused
projection. Others (`dora`) subclass the former.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact, Key, Num

from lora_jax.dropout import dropout
from lora_jax.low_rank import contraction
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.weights import WeightView
from lora_jax.sharding.layout import automatically, sharding_of
from lora_jax.state import Temporary
from lora_jax.surgery import Inserted

Pair = TypeVar("Pair", bound="LowRankUpdate")
BaseCall = Callable[[Array], Array]  # the pre-trained layer's own call, of its inputs


class DropoutKey(Temporary[Array]):
    """Random key of one adapted layer's dropout; never a parameter."""


class DropoutRate(Temporary[Array]):
    """Rate of one adapted layer's dropout, where it is a number of a run and not of the model."""


class WeightUpdate(Inserted):
    """Base of the children `lora` of adapted layers. All their parameters train as the group `lora`.

    Attributes:
      enabled: whether the layer uses it, see `switching`.
    """

    enabled: bool = True

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """The adapted layer's result.

        Args:
          weight: of the layer that holds this child.
          inputs: of the layer.
          base: the pre-trained layer's call.
        """
        raise NotImplementedError

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """Logits of a query against an adapted table whose transpose is the output layer.

        Args:
          weight: of the layer that holds this child.
          query: activations.
          base: the pre-trained table's `attend`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no form for a tied output layer")

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """The weight with the update in it, float32, in the shape of its view.

        For inference without extra cost (paper, section 4.1).
        """
        raise NotImplementedError

    def delta(self, weight: WeightView) -> Float[Array, ...]:
        """What the update adds to the weight, float32, in the shape of its view."""
        return self.merged(weight) - weight.values()

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """What the update adds to the layer's bias, float32 (*stack, *batch, *outputs); None: nothing."""
        return None

    def pairs(self) -> dict[str, LowRankUpdate]:
        """The factor pairs by the name of their part; "" for the pair of a whole weight."""
        raise NotImplementedError

    def pairs_with_weights(self, weight: WeightView) -> dict[str, tuple[LowRankUpdate, WeightView]]:
        """The same, each with the weight, or the part of it, that it belongs to."""
        return {name: (pair, weight) for name, pair in self.pairs().items()}


class LowRankUpdate(WeightUpdate):
    """The factor pair of one weight: W + scale * A B (Hu et al. 2021, section 4.1).

    The d x d product is never formed but for merging: activations pass x -> rank -> y.

    Attributes:
      a: (*stack, *batch, *inputs, rank).
      b: (*stack, *batch, rank, *outputs).
      alpha: the constant of section 4.1.
      scale: alpha/r or alpha/sqrt(r).
      dropout: rate on the input of A, on this branch only (as loralib).
      b_bias: (*stack, *batch, *outputs), added to x A B; only where the settings ask for it.
      lookup_only: whether a table that is the output layer too is updated for lookups only.
      deterministic: switches dropout off; set by `model.eval()`, taken back by `model.train()`.
    """

    deterministic: bool = False
    lookup_only: bool = False
    b_bias: nnx.LoRAParam[Array]

    def __init__(self, a: Array, b: Array, *, alpha: float, scale: float, dropout: float):
        self.a = nnx.LoRAParam(a)
        self.b = nnx.LoRAParam(b)
        self.alpha = alpha
        self.scale = scale
        self.dropout = dropout

    # only while `seed_dropout` has set them
    dropout_key: DropoutKey
    dropout_rate: DropoutRate

    @classmethod
    def create(
        cls: type[Pair], weight: WeightView, settings: LoRASettings, key: Key[Array, ""], path: str
    ) -> Pair:
        """A new pair whose product is zero.

        Args:
          weight: that the pair is for.
          settings: rank, alpha and the rest.
          key: random key; stacked layers each draw their own values.
          path: of the layer, for messages.

        Raises:
          ValueError: the rank, alpha or dropout rate is out of range.
        """
        roles = weight.roles
        batch, inputs, outputs = roles.sizes(weight.shape)
        fan_in, fan_out = math.prod(inputs), math.prod(outputs)
        rank = contraction.check_rank(settings.rank, min(fan_in, fan_out), path)
        shape_a, shape_b = contraction.factor_shapes(roles, weight.shape, rank)
        if weight.gathers:
            a = jnp.zeros(shape_a, jnp.float32)
            b = contraction.initial_values(key, shape_b, rank, "gaussian", std=1.0)  # as loralib
        else:
            a = contraction.initial_values(key, shape_a, fan_in, settings.init, settings.std)
            b = jnp.zeros(shape_b, jnp.float32)
        dropout_rate = float(settings.dropout)
        pair = cls(a, b, alpha=float(settings.alpha), scale=settings.scale, dropout=dropout_rate)
        weight.layout.give(pair.a, (*roles.batch, *roles.inputs, None))
        weight.layout.give(pair.b, (*roles.batch, None, *roles.outputs))
        if settings.b_bias:
            pair.b_bias = nnx.LoRAParam(jnp.zeros(batch + outputs, jnp.float32))
            weight.layout.give(pair.b_bias, (*roles.batch, *roles.outputs))
        if settings.lookup_only:
            pair.lookup_only = True
        return pair

    def restart(self, weight: WeightView) -> None:
        """Sets the factor that starts at zero to zero, in place: the layer is the pre-trained one."""
        zero = self.a if weight.gathers else self.b
        zero[...] = jnp.zeros_like(zero[...])
        if hasattr(self, "b_bias"):
            self.b_bias[...] = jnp.zeros_like(self.b_bias[...])

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random values, in place, whose product is a share of the weight.

        Args:
          weight: that the pair is for.
          key: random key.
          share: root mean square of scale * A B, relative to the weight's (of a weight of zeros: to
            1 / sqrt(inputs)).
        """
        fan_in = math.prod(weight.roles.sizes(weight.shape)[1])
        size = jnp.sqrt(jnp.mean(weight.values() ** 2))
        size = jnp.where(size > 0, size, 1 / math.sqrt(fan_in))
        key_a, key_b = jax.random.split(key)
        std_b = share * size * math.sqrt(fan_in / self.rank) / self.scale
        self.a[...] = jax.random.normal(key_a, self.a.shape) / math.sqrt(fan_in)
        self.b[...] = std_b * jax.random.normal(key_b, self.b.shape)
        if hasattr(self, "b_bias"):
            of_bias = jax.random.normal(jax.random.fold_in(key, 2), self.b_bias.shape)
            self.b_bias[...] = share * size / self.scale * of_bias

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.a.shape[-1]

    def pairs(self) -> dict[str, LowRankUpdate]:
        """This pair, without the name of a part."""
        return {"": self}

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """x W + scale * x A B, with dropout on the second x."""
        outputs = base(inputs)
        return outputs + self.low_rank_output(weight, self.drop(inputs), outputs)

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """q W^T + scale * (q B^T) A^T, without dropout; q W^T where the update is for lookups only."""
        logits = base(query)
        return logits if self.lookup_only else logits + self.low_rank_logits(weight, query, logits)

    def low_rank_logits(
        self,
        weight: WeightView,
        query: Float[Array, "... features"],
        logits: Float[Array, "... rows"],
    ) -> Float[Array, "... rows"]:
        """scale * (q B^T) A^T, in the type of the pre-trained logits, split over a mesh as they are."""
        a, b = (factor.astype(logits.dtype) for factor in (self.a[...], self.b[...] * self.scale))
        return automatically(
            weight.low_rank_logits, sharding_of(logits), query.astype(logits.dtype), a, b
        )

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """W + scale * A B."""
        return weight.values() + self.scaled_product(weight)

    def delta(self, weight: WeightView) -> Float[Array, ...]:
        """scale * A B."""
        return self.scaled_product(weight)

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """scale * the bias of B."""
        if not hasattr(self, "b_bias"):
            return None
        return self.scale * self.b_bias[...].astype(jnp.float32)

    def scaled_product(self, weight: WeightView) -> Float[Array, ...]:
        """scale * A B in the shape of the weight's view, float32."""
        roles = weight.roles
        product = functools.partial(contraction.delta, roles, scale=self.scale)
        return weight.automatically(product, tuple(range(roles.ndim)), self.a[...], self.b[...])

    def low_rank_output(
        self, weight: WeightView, inputs: Num[Array, ...], outputs: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """scale * (x A B + the bias of B), in the type of the layer's outputs, split over a mesh as they are.

        Args:
          weight: that the pair is for.
          inputs: of the layer, which have passed dropout.
          outputs: of the pre-trained layer.
        """
        a, dtype = self.a[...] * self.scale, outputs.dtype
        if not weight.gathers:  # a gathered A stays float32, and so do the sums of its gradient
            a, inputs = a.astype(dtype), inputs.astype(dtype)
        b = self.b[...].astype(dtype)
        result = automatically(weight.low_rank_output, sharding_of(outputs), inputs, a, b)
        if (bias := self.bias_delta(weight)) is not None:
            result = result + weight.on_outputs(bias, outputs.ndim).astype(dtype)
        return result

    def drop(self, inputs: Num[Array, ...]) -> Num[Array, ...]:
        """The branch's inputs, with dropout if this layer holds a key and is not deterministic."""
        if self.deterministic or not hasattr(self, "dropout_key"):
            return inputs
        if not jnp.issubdtype(inputs.dtype, jnp.inexact):
            return inputs
        rate = self.dropout_rate[...] if hasattr(self, "dropout_rate") else self.dropout
        return dropout(inputs, rate, self.dropout_key[...])


class FusedUpdate(WeightUpdate):
    """Updates of chosen parts of a fused projection, one child for each.

    The parts divide the first output axis of the weight: q, k, v are the three of our GPT-2's kernel
    (d, 3, d), or thirds of a kernel (d, 3d). Each part has factors of its own (loralib's
    `MergedLinear`); the other parts get no update.

    Attributes:
      names: of all parts, in order.
      sizes: of all parts along that axis.
    """

    def __init__(
        self, parts: dict[str, LowRankUpdate], names: tuple[str, ...], sizes: tuple[int, ...]
    ):
        self.names = names
        self.sizes = sizes
        for name, update in parts.items():
            setattr(self, name, update)

    def pairs(self) -> dict[str, LowRankUpdate]:
        """The factor pairs of the adapted parts by name."""
        return {name: getattr(self, name) for name in self.names if hasattr(self, name)}

    def pairs_with_weights(self, weight: WeightView) -> dict[str, tuple[LowRankUpdate, WeightView]]:
        """The factor pairs of the adapted parts, each with its part of the weight."""
        return {
            name: (update, part)
            for name, update, part in self._all_parts(weight)
            if update is not None
        }

    def _all_parts(
        self, weight: WeightView
    ) -> Iterator[tuple[str, LowRankUpdate | None, WeightView]]:
        """Yields the name of every part, in order, its update if it has one, and its weight."""
        for name, part in zip(self.names, weight.parts(self.sizes), strict=True):
            yield name, getattr(self, name, None), part

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """The outputs of all parts, joined."""
        outputs = base(inputs)
        axis = weight.output_axis(outputs.ndim)
        pieces = []
        for _, update, part in self._all_parts(weight):

            def base_part(x: Array, part: WeightView = part) -> Array:
                return part.sliced(outputs if x is inputs else base(x), axis)

            if update is None:
                pieces.append(base_part(inputs))
            else:
                pieces.append(update.output(part, inputs, base_part))
        return jnp.concatenate(pieces, axis=axis)

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """The merged weights of all parts, joined."""
        return self._joined(weight, lambda part: part.values(), lambda u, part: u.merged(part))

    def delta(self, weight: WeightView) -> Float[Array, ...]:
        """The deltas of all parts, joined; zero for a part without an update."""
        return self._joined(
            weight, lambda part: jnp.zeros(part.shape, jnp.float32), lambda u, part: u.delta(part)
        )

    def bias_delta(self, weight: WeightView) -> Float[Array, ...] | None:
        """Those of all parts, joined; zero for a part without a bias."""
        axis, pieces, found = len(weight.roles.batch), [], False
        for _, update, part in self._all_parts(weight):
            own = None if update is None else update.bias_delta(part)
            batch, _, outputs = part.roles.sizes(part.shape)
            pieces.append(jnp.zeros(batch + outputs, jnp.float32) if own is None else own)
            found = found or own is not None
        return jnp.concatenate(pieces, axis=axis) if found else None

    def _joined(
        self,
        weight: WeightView,
        untouched: Callable[[WeightView], Array],
        updated: Callable[[LowRankUpdate, WeightView], Array],
    ) -> Float[Array, ...]:
        pieces = [
            untouched(part) if update is None else updated(update, part)
            for _, update, part in self._all_parts(weight)
        ]
        return jnp.concatenate(pieces, axis=weight.roles.outputs[0])
