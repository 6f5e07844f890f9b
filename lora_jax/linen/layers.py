"""LoRA layers of Flax Linen: Dense, DenseGeneral, Einsum, Embed, Conv and ConvTranspose.

Their algebra is that of NNX's (`low_rank.kinds`). A layer of this kind stands for a Linen module: in the
tree of nodes, where it is adapted and merged, and in a call, where it has the parameters of that call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen
from jaxtyping import Array, Float, Inexact, Num

from lora_jax.linen.calls import FORMS, CalledNode, Held, node_class
from lora_jax.linen.nodes import PARAMS
from lora_jax.low_rank import layers
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.einsum import EinsumKind
from lora_jax.low_rank.kinds import (
    ConvKind,
    ConvTransposeKind,
    DenseKind,
    EmbedKind,
    GeneralKind,
    Kind,
)
from lora_jax.low_rank.lora_layer import LoRALayer


class LinenLoRALayer(LoRALayer, Kind):
    """Mixin of every LoRA layer that stands for a Linen module; `self.configured()` is the module.

    For a class of your own, say what the weight is, as docs/layers.md does for NNX:

        @lora_jax.linen.register(MyDense)
        class LoRAMyDense(lora_jax.linen.LinenLoRALayer):
            weight = "w"  # of self.param("w", ...)
            def roles(self): return lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,))
            def low_rank_output(self, inputs, a, b): return inputs @ a @ b
    """

    linen_module: Held
    linen_shapes: tuple[tuple[str, Shape], ...]

    def configured(self) -> Any:
        """The Linen module, which has the arguments of its constructor."""
        return self.linen_module.module

    def declared_shapes(self) -> dict[str, Shape]:
        """Of the parameters, as the module's call sees them."""
        return dict(self.linen_shapes)

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """The call of a module that is as this one, but for its kernel; it has no bias."""
        twin = self.configured().clone(
            parent=None, use_bias=False, kernel_init=linen.initializers.zeros_init(), **changes
        )
        result: Array = twin.apply({PARAMS: {"kernel": kernel}}, inputs)
        return result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Of a model that is this layer alone: the module's call, in which the update takes part."""
        return CalledNode.__call__(self, *args, **kwargs)  # type: ignore[arg-type]


def register(
    base: type[linen.Module],
) -> Callable[[type[LinenLoRALayer]], type[LinenLoRALayer]]:
    """Class decorator: makes the class the LoRA layer of Linen modules whose class is exactly `base`.

    Raises:
      TypeError: the class does not inherit from LinenLoRALayer, or `base` is no Linen module.
    """

    def add(form: type[LinenLoRALayer]) -> type[LinenLoRALayer]:
        if not issubclass(form, LinenLoRALayer) or not issubclass(base, linen.Module):
            raise TypeError(
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


@register(linen.Einsum)
class LoRAEinsum(LinenLoRALayer, EinsumKind):
    """Einsum with one weight; letters decide the roles of its axes."""

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """Of the kernel's shape, by the equation in `changes`."""
        return super().own_product(inputs, kernel, shape=kernel.shape, **changes)

    def bias_values(self) -> Inexact[Array, ...] | None:
        """The bias as (*batch, *outputs)."""
        bias = getattr(self, "bias", None)
        return None if bias is None else self.bias_in_order_of_roles(bias[...], self.view())


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
