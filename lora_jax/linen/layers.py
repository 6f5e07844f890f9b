"""LoRA layers of Flax Linen: Dense, DenseGeneral, Einsum, Embed, Conv and ConvTranspose.

Their algebra is that of NNX's (`low_rank.kinds`). A layer of this kind stands for a Linen module: in the
tree of nodes, where it is adapted and merged, and in a call, where it has the parameters of that call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from flax import linen
from jaxtyping import Array, Float, Inexact, Num

from lora_jax.errors import InputTypeError
from lora_jax.linen.calls import FORMS, LinenLoRALayer, node_class
from lora_jax.low_rank import layers
from lora_jax.low_rank.conv_kinds import ConvKind, ConvTransposeKind
from lora_jax.low_rank.einsum import EinsumKind
from lora_jax.low_rank.kinds import DenseKind, EmbedKind, GeneralKind


def register(
    base: type[linen.Module],
) -> Callable[[type[LinenLoRALayer]], type[LinenLoRALayer]]:
    """Class decorator: makes the class the LoRA layer of Linen modules whose class is exactly `base`.

    Raises:
      TypeError: the class does not inherit from LinenLoRALayer, or `base` is no Linen module.
    """

    def add(form: type[LinenLoRALayer]) -> type[LinenLoRALayer]:
        if not issubclass(form, LinenLoRALayer) or not issubclass(base, linen.Module):
            raise InputTypeError(
                f"{form.__name__} must subclass lora_jax.linen.LinenLoRALayer, and {base.__name__} "
                "flax.linen.Module; for an nnx.Module use lora_jax.register"
            )
        layers.refuse_borrowed_branches(form, base, FORMS)
        node = node_class(base)
        metaclass: Any = type(form)
        names = {"__module__": form.__module__, "__qualname__": form.__qualname__}
        adapted: type[LinenLoRALayer] = metaclass(form.__name__, (form, node), names)
        layers.register(node)(adapted)
        FORMS[base] = adapted
        return adapted

    return add


@register(linen.Dense)
class LoRADense(LinenLoRALayer, DenseKind):
    """y = x W + b + scale * x A B."""

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """Of as many features as the kernel has."""
        return super().own_product(inputs, kernel, features=kernel.shape[-1])


@register(linen.DenseGeneral)
class LoRADenseGeneral(LinenLoRALayer, GeneralKind):
    """Any contraction of input axes; the projections of Linen's attention are of this kind."""

    def axis_counts(self) -> tuple[int, int, int]:
        """Numbers of batch, input and output axes of the kernel."""
        module = self.configured()
        counts = [
            1 if isinstance(axes, int) else len(axes)
            for axes in (module.batch_dims, module.axis, module.features)
        ]
        return counts[0], counts[1], counts[2]

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """Of as many features as the kernel has."""
        return super().own_product(inputs, kernel, features=kernel.shape[-1])


class EinsumLoRALayer(LinenLoRALayer, EinsumKind):
    """The LoRA layer of a class of your own that is one einsum of its inputs with one weight.

        @lora_jax.linen.register(MyEinsum)
        class LoRAMyEinsum(lora_jax.linen.EinsumLoRALayer):
            weight = "w"
            inputs_argument, equation_argument = "x", "eqn"  # of __call__(self, eqn, x)

    Attributes:
      equation_argument: name of the call's argument that is the equation, for a module without an
        attribute `einsum_str`.
    """

    equation_argument: ClassVar[str] = "einsum_str"

    def einsum_equation(self) -> str | None:
        """Of the module, or of its call."""
        own = getattr(self.configured(), "einsum_str", None)
        given: str | None = own or self.call_argument(self.equation_argument)
        return given

    own_product = EinsumKind.own_product  # the plain einsum, and not a call of the module


@register(linen.Einsum)
class LoRAEinsum(EinsumLoRALayer):
    """Einsum with one weight; letters decide the roles of its axes."""

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """Of the kernel's shape, by the equation in `changes`."""
        return LinenLoRALayer.own_product(self, inputs, kernel, shape=kernel.shape, **changes)


@register(linen.Embed)
class LoRAEmbed(LinenLoRALayer, EmbedKind):
    """E + scale * A B; see `EmbedKind`."""

    def promoted(self, query: Float[Array, ...], factor: Float[Array, ...]) -> list[Array]:
        """Both in the type of `attend`, by the module's own promotion."""
        module = self.configured()
        return list(module.promote_dtype(query, factor, dtype=module.dtype))


@register(linen.Conv)
class LoRAConv(LinenLoRALayer, ConvKind):
    """A convolution to `rank` channels, then a 1x1 map to the outputs; see `ConvKind`."""

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """Of as many channels as the kernel has."""
        return super().own_product(inputs, kernel, features=kernel.shape[-1])


@register(linen.ConvTranspose)
class LoRAConvTranspose(LinenLoRALayer, ConvTransposeKind):
    """A transposed convolution to `rank` channels, then a 1x1 map to the outputs."""

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """Of as many channels as the kernel has."""
        channels = -2 if self.configured().transpose_kernel else -1
        return super().own_product(inputs, kernel, features=kernel.shape[channels])
