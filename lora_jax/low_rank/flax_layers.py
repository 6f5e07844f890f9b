"""LoRA layers of Flax NNX: Linear, LinearGeneral, Einsum, Embed, Conv and ConvTranspose.

The algebra is that of their kinds (`kinds`, `einsum`), which Flax Linen's layers share. Importing this
module registers them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Inexact, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.conv_kinds import ConvKind, ConvTransposeKind
from lora_jax.low_rank.einsum import EinsumLoRALayer
from lora_jax.low_rank.kinds import DenseKind, EmbedKind, GeneralKind
from lora_jax.low_rank.layers import register
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.weights import WeightView


class FlaxLoRALayer(LoRALayer):
    """A LoRA layer of one of Flax's own classes."""

    original: ClassVar[type[nnx.Module]]  # whose product it is, also for forms of its subclasses

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """The call of a layer that is as this one, but for its kernel; it has no bias."""
        twin = object.__new__(self.original)
        vars(twin).update(vars(self), kernel=kernel, bias=None, use_bias=False, **changes)
        result: Array = twin(inputs)  # type: ignore[operator]
        return result


@register(nnx.Linear)
class LoRALinear(FlaxLoRALayer, DenseKind, nnx.Linear):
    """y = x W + b + scale * x A B."""

    original = nnx.Linear

    def declared_shapes(self) -> dict[str, Shape]:
        """Of kernel and bias."""
        return {"kernel": (self.in_features, self.out_features), "bias": (self.out_features,)}


@register(nnx.LinearGeneral)
class LoRALinearGeneral(FlaxLoRALayer, GeneralKind, nnx.LinearGeneral):
    """Any contraction of input axes; the projections of `nnx.MultiHeadAttention` are of this kind."""

    original = nnx.LinearGeneral

    def axis_counts(self) -> tuple[int, int, int]:
        """Numbers of batch, input and output axes of the kernel."""
        return len(self.batch_axis), len(self.in_features), len(self.out_features)

    def declared_shapes(self) -> dict[str, Shape]:
        """Of kernel and bias."""
        batch = tuple(self.batch_axis.values())
        return {
            "kernel": (*batch, *self.in_features, *self.out_features),
            "bias": (*batch, *self.out_features),
        }


@register(nnx.Einsum)
class LoRAEinsum(FlaxLoRALayer, EinsumLoRALayer, nnx.Einsum):
    """Einsum with one weight; letters decide the roles of its axes."""

    original = nnx.Einsum

    def __call__(
        self, inputs: Array, einsum_str: str | None = None, *args: Any, **kwargs: Any
    ) -> Array:
        """The layer's own equation only: another one would need factors of other shapes."""
        # The layer's own string is stored without spaces.
        if einsum_str is not None and einsum_str.replace(" ", "") != self.einsum_str:
            raise InputError(
                f"an adapted nnx.Einsum of {self.einsum_str!r} cannot be called with {einsum_str!r}"
            )
        return super().__call__(inputs, einsum_str, *args, **kwargs)

    def declared_shapes(self) -> dict[str, Shape]:
        """Of kernel and bias."""
        bias = {} if self.bias_shape is None else {"bias": tuple(self.bias_shape)}
        return {"kernel": tuple(self.kernel_shape), **bias}


@register(nnx.Embed)
class LoRAEmbed(LoRALayer, EmbedKind, nnx.Embed):
    """E + scale * A B; see `EmbedKind`."""

    def promoted(self, query: Float[Array, ...], factor: Float[Array, ...]) -> list[Array]:
        """Both in the type of `attend`, by the layer's own promotion."""
        return list(self.promote_dtype((query, factor), dtype=self.dtype))

    def attend(self, query: Array, *args: Any, **kwargs: Any) -> Array:
        """Logits of `query` against the adapted table."""
        base = super().attend
        if not self.lora.enabled:
            return base(query, *args, **kwargs)
        return self.lora.attend(WeightView(self), query, lambda q: base(q, *args, **kwargs))

    def declared_shapes(self) -> dict[str, Shape]:
        """Of the table."""
        return {"embedding": (self.num_embeddings, self.features)}


@register(nnx.Conv)
class LoRAConv(FlaxLoRALayer, ConvKind, nnx.Conv):
    """A convolution to `rank` channels, then a 1x1 map to the outputs; see `ConvKind`."""

    original = nnx.Conv

    def declared_shapes(self) -> dict[str, Shape]:
        """Of kernel and bias."""
        return {"kernel": tuple(self.kernel_shape), "bias": (self.out_features,)}


@register(nnx.ConvTranspose)
class LoRAConvTranspose(FlaxLoRALayer, ConvTransposeKind, nnx.ConvTranspose):
    """A transposed convolution to `rank` channels, then a 1x1 map to the outputs."""

    original = nnx.ConvTranspose

    def declared_shapes(self) -> dict[str, Shape]:
        """Of kernel and bias."""
        return {"kernel": tuple(self.kernel_shape), "bias": (self.out_features,)}
