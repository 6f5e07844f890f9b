"""What LoRA inserts into a layer. The inserted child owns its algebra: how the layer's output changes,
and what the merged weight is; of the layer it sees the weight and the roles of its axes
(`weights.WeightView`).

`WeightUpdate` is what every child is, `PartUpdate` one of a single weight, `FactorsUpdate` one that adds the
product of two factors: LoRA's own (`pairs`), those of other methods, and `fused.FusedUpdate` with an update
for each chosen part of a fused projection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Key, Num

from lora_jax.dropout import dropout
from lora_jax.low_rank import contraction
from lora_jax.low_rank.weights import WeightView
from lora_jax.sharding.layout import automatically, sharding_of
from lora_jax.state import Temporary
from lora_jax.surgery import Inserted

Part = TypeVar("Part", bound="PartUpdate")
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

    def members(self) -> dict[str, PartUpdate]:
        """The updates by the name of their part; "" for that of a whole weight."""
        raise NotImplementedError

    def members_with_weights(self, weight: WeightView) -> dict[str, tuple[PartUpdate, WeightView]]:
        """The same, each with the weight, or the part of it, that it belongs to."""
        return {name: (member, weight) for name, member in self.members().items()}


class PartUpdate(WeightUpdate):
    """Base of the updates of one weight, or of one part of a fused one.

    Attributes:
      dropout: rate on the inputs that the update sees, on this branch only (as loralib).
      deterministic: switches dropout off; set by `model.eval()`, taken back by `model.train()`.
    """

    dropout: float = 0.0
    deterministic: bool = False

    # only while `seed_dropout` has set them
    dropout_key: DropoutKey
    dropout_rate: DropoutRate

    @classmethod
    def create(
        cls: type[Part], weight: WeightView, settings: Any, key: Key[Array, ""], path: str
    ) -> Part:
        """A new update that changes nothing yet.

        Args:
          weight: that it is for.
          settings: rank, alpha and the rest.
          key: random key; stacked layers each draw their own values.
          path: of the layer, for messages.

        Raises:
          ValueError: the settings do not fit the weight.
        """
        raise NotImplementedError

    def restart(self, weight: WeightView) -> None:
        """Sets the update to one that changes nothing, in place: the layer is the pre-trained one."""
        raise NotImplementedError

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random values, in place, with which the update is about a share of the weight.

        Args:
          weight: that it is for.
          key: random key.
          share: root mean square of the update, relative to the weight's (of a weight of zeros: to
            1 / sqrt(inputs)).
        """
        raise NotImplementedError

    def members(self) -> dict[str, PartUpdate]:
        """This update, without the name of a part."""
        return {"": self}

    def drop(self, inputs: Num[Array, ...]) -> Num[Array, ...]:
        """The branch's inputs, with dropout if this layer holds a key and is not deterministic."""
        if self.deterministic or not hasattr(self, "dropout_key"):
            return inputs
        if not jnp.issubdtype(inputs.dtype, jnp.inexact):
            return inputs
        rate = self.dropout_rate[...] if hasattr(self, "dropout_rate") else self.dropout
        return dropout(inputs, rate, self.dropout_key[...])


class FactorsUpdate(PartUpdate):
    """Base of the updates that add a product of two factors: W + scale * A B.

    The d x d product is never formed but for merging: activations pass x -> rank -> y.

    Attributes:
      scale: in front of the product.
    """

    scale: float = 1.0

    def factors(self, weight: WeightView) -> tuple[Float[Array, ...], Float[Array, ...]]:
        """A (*stack, *batch, *inputs, rank) and B (*stack, *batch, rank, *outputs), float32."""
        raise NotImplementedError

    def output(self, weight: WeightView, inputs: Num[Array, ...], base: BaseCall) -> Array:
        """x W + scale * x A B, with dropout on the second x."""
        outputs = base(inputs)
        return outputs + self.low_rank_output(weight, self.drop(inputs), outputs)

    def attend(
        self, weight: WeightView, query: Float[Array, "... features"], base: BaseCall
    ) -> Float[Array, "... rows"]:
        """q W^T + scale * (q B^T) A^T, without dropout."""
        logits = base(query)
        return logits + self.low_rank_logits(weight, query, logits)

    def low_rank_logits(
        self,
        weight: WeightView,
        query: Float[Array, "... features"],
        logits: Float[Array, "... rows"],
    ) -> Float[Array, "... rows"]:
        """scale * (q B^T) A^T, in the type of the pre-trained logits, split over a mesh as they are."""
        a, b = self.factors(weight)
        a, b = a.astype(logits.dtype), (b * self.scale).astype(logits.dtype)
        return automatically(
            weight.low_rank_logits, sharding_of(logits), query.astype(logits.dtype), a, b
        )

    def merged(self, weight: WeightView) -> Float[Array, ...]:
        """W + scale * A B."""
        return weight.values() + self.scaled_product(weight)

    def delta(self, weight: WeightView) -> Float[Array, ...]:
        """scale * A B."""
        return self.scaled_product(weight)

    def scaled_product(self, weight: WeightView) -> Float[Array, ...]:
        """scale * A B in the shape of the weight's view, float32."""
        roles = weight.roles
        product = functools.partial(contraction.delta, roles, scale=self.scale)
        return weight.automatically(product, tuple(range(roles.ndim)), *self.factors(weight))

    def low_rank_output(
        self, weight: WeightView, inputs: Num[Array, ...], outputs: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """scale * (x A B + the bias of B), in the type of the layer's outputs, split over a mesh as they are.

        Args:
          weight: that the update is for.
          inputs: of the layer, which have passed dropout.
          outputs: of the pre-trained layer.
        """
        a, b = self.factors(weight)
        a, dtype = a * self.scale, outputs.dtype
        if not weight.gathers:  # a gathered A stays float32, and so do the sums of its gradient
            a, inputs = a.astype(dtype), inputs.astype(dtype)
        b = b.astype(dtype)
        result = automatically(weight.low_rank_output, sharding_of(outputs), inputs, a, b)
        if (bias := self.bias_delta(weight)) is not None:
            result = result + weight.on_outputs(bias, outputs.ndim).astype(dtype)
        return result
