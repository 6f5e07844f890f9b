"""LoRA layers of Flax NNX: Linear, LinearGeneral, Einsum, Embed and Conv.

Each says which axes of its weight are inputs and outputs, and how activations pass through the two
factors with the cost of x -> rank -> y. Importing this module registers them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax.low_rank.contraction import Contraction
from lora_jax.low_rank.layers import LoRALayer, register
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.weights import WeightView


@register(nnx.Linear)
class LoRALinear(LoRALayer, nnx.Linear):
    """y = x W + b + scale * x A B."""

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        return Contraction(batch=(), inputs=(0,), outputs=(1,))

    def low_rank_output(
        self,
        inputs: Float[Array, "... inputs"],
        a: Float[Array, "inputs rank"],
        b: Float[Array, "rank outputs"],
    ) -> Float[Array, "... outputs"]:
        """Multiplies by both factors: x A B."""
        low = jnp.matmul(inputs, a, precision=self.precision)
        return jnp.matmul(low, b, precision=self.precision)


@register(nnx.LinearGeneral)
class LoRALinearGeneral(LoRALayer, nnx.LinearGeneral):
    """Any contraction of input axes; the projections of `nnx.MultiHeadAttention` are of this kind."""

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        n_batch, n_in = len(self.batch_axis), len(self.in_features)
        n_all = n_batch + n_in + len(self.out_features)
        axes = tuple(range(n_all))
        return Contraction(axes[:n_batch], axes[n_batch : n_batch + n_in], axes[n_batch + n_in :])

    def low_rank_output(self, inputs: Array, a: Array, b: Array) -> Array:
        """Multiplies by both factors: x A B."""
        ndim, n_batch = inputs.ndim, len(self.batch_axis)
        # nnx.LinearGeneral sorts the axes before it contracts them.
        contracted = tuple(sorted(axis % ndim for axis in self.axis))
        batch = tuple(sorted(axis % ndim for axis in self.batch_axis))
        lead = tuple(range(n_batch))
        contracted_of_a = tuple(range(n_batch, n_batch + len(contracted)))
        low = jax.lax.dot_general(
            inputs, a, ((contracted, contracted_of_a), (batch, lead)), precision=self.precision
        )
        return jax.lax.dot_general(
            low, b, (((low.ndim - 1,), (n_batch,)), (lead, lead)), precision=self.precision
        )


@register(nnx.Einsum)
class LoRAEinsum(LoRALayer, nnx.Einsum):
    """Einsum with one weight; letters decide the roles of its axes."""

    def check(self, settings: LoRASettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        if self.einsum_str is None:
            raise ValueError(
                "an nnx.Einsum without einsum_str gets its equation only when called, so the roles "
                "of its axes are unknown; give einsum_str to its constructor"
            )
        inputs, weight, outputs = self._letters()
        lost = [c for c in weight if c not in inputs and c not in outputs]
        repeated = len(set(weight)) != len(weight)
        if "..." in weight or lost or repeated:
            raise ValueError(
                f"the weight of einsum {self.einsum_str!r} must have plain letters, each in the "
                "input or in the result"
            )

    def __call__(
        self, inputs: Array, einsum_str: str | None = None, *args: Any, **kwargs: Any
    ) -> Array:
        """The layer's own equation only: another one would need factors of other shapes."""
        # The layer's own string is stored without spaces.
        if einsum_str is not None and einsum_str.replace(" ", "") != self.einsum_str:
            raise ValueError(
                f"an adapted nnx.Einsum of {self.einsum_str!r} cannot be called with {einsum_str!r}"
            )
        return super().__call__(inputs, einsum_str, *args, **kwargs)

    def _letters(self) -> tuple[str, str, str]:
        operands, outputs = self.einsum_str.split("->")
        inputs, weight = operands.split(",")
        return inputs, weight, outputs

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        inputs, weight, outputs = self._letters()
        where = list(enumerate(weight))
        return Contraction(
            batch=tuple(i for i, c in where if c in inputs and c in outputs),
            inputs=tuple(i for i, c in where if c in inputs and c not in outputs),
            outputs=tuple(i for i, c in where if c not in inputs),
        )

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the kernel's first output axis."""
        return self._result_axes(ndim)[len(self.roles().batch)]

    def on_outputs(self, values: Array, ndim: int) -> Array:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        axes = self._result_axes(ndim)
        shape = [1] * ndim
        for axis, size in zip(axes, values.shape, strict=True):
            shape[axis] = size
        return jnp.transpose(values, sorted(range(len(axes)), key=axes.__getitem__)).reshape(shape)

    def bias_values(self) -> Array | None:
        """The bias as (*batch, *outputs); its own axes are in the order of the result."""
        if self.bias is None:
            return None
        _, kernel, result = self._letters()
        sizes = dict(zip(kernel, self.view(), strict=True))
        ordered = [letter for letter in result if letter in sizes]
        bias = self.bias[...].reshape([sizes[letter] for letter in ordered])
        return jnp.transpose(bias, [ordered.index(letter) for letter in self._kept_letters()])

    def _kept_letters(self) -> list[str]:
        """Letters of the kernel's batch and output axes."""
        kernel, roles = self._letters()[1], self.roles()
        return [kernel[axis] for axis in roles.batch + roles.outputs]

    def _result_axes(self, ndim: int) -> list[int]:
        """Axes of a result with `ndim` axes that hold the kernel's batch and output axes."""
        before, _, after = self._letters()[2].partition("...")
        return [
            before.index(letter) if letter in before else ndim - len(after) + after.index(letter)
            for letter in self._kept_letters()
        ]

    def low_rank_output(self, inputs: Array, a: Array, b: Array) -> Array:
        """Multiplies by both factors: x A B."""
        letters_in, weight, letters_out = self._letters()
        roles = self.roles()
        batch, contracted, produced = (
            "".join(weight[axis] for axis in axes)
            for axes in (roles.batch, roles.inputs, roles.outputs)
        )
        rank = next(c for c in "rstuvwxyzabcdefghijklmnopq" if c not in letters_in + letters_out)
        low = "".join(c for c in letters_in if c not in contracted) + rank
        inner = jnp.einsum(
            f"{letters_in},{batch}{contracted}{rank}->{low}", inputs, a, precision=self.precision
        )
        return jnp.einsum(
            f"{low},{batch}{rank}{produced}->{letters_out}", inner, b, precision=self.precision
        )


@register(nnx.Embed)
class LoRAEmbed(LoRALayer, nnx.Embed):
    """E + scale * A B with A (vocabulary, rank) gathered like E. A starts at zero, B at N(0, 1).

    `attend` (a tied output layer) uses the adapted matrix too. The branch has no dropout.
    """

    weight = "embedding"
    gathers = True

    def check(self, settings: LoRASettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        if settings.fused:
            raise ValueError("an nnx.Embed has no parts to choose; adapt the whole layer")

    def roles(self) -> Contraction:
        """Roles of the axes of the table."""
        return Contraction(batch=(), inputs=(0,), outputs=(1,))

    def low_rank_output(
        self,
        inputs: Int[Array, ...],
        a: Float[Array, "vocabulary rank"],
        b: Float[Array, "rank features"],
    ) -> Float[Array, "... features"]:
        """Looks up rows of A and multiplies them by B."""
        # nnx.Embed takes row 0 for every index when there is one row only.
        rows = jnp.zeros_like(inputs) if self.num_embeddings == 1 else inputs
        return jnp.take(a, rows, axis=0).astype(b.dtype) @ b

    def attend(self, query: Array, *args: Any, **kwargs: Any) -> Array:
        """Logits of `query` against the adapted table."""
        base = super().attend
        return self.lora.attend(WeightView(self), query, lambda q: base(q, *args, **kwargs))


@register(nnx.Conv)
class LoRAConv(LoRALayer, nnx.Conv):
    """A convolution to `rank` channels per group, then a 1x1 map to the outputs.

    A has the kernel's window, stride, padding and dilation. Groups are batch axes: every group has
    factors of its own, of `rank` each.
    """

    in_all_linear = False

    def check(self, settings: LoRASettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        if self.mask is not None:
            raise ValueError("a masked nnx.Conv has no LoRA form: the mask would cut the delta")
        if settings.fused and self.feature_group_count != 1:
            raise ValueError("a grouped nnx.Conv has no parts to choose; adapt the whole layer")

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        window = tuple(range(len(self.kernel_size) + 1))
        group = len(window)
        return Contraction(batch=(group,), inputs=window, outputs=(group + 1,))

    def weight_ndim(self) -> int:
        """Axes of one kernel: window, inputs, outputs."""
        return len(self.kernel_size) + 2

    def view(self) -> tuple[int, ...]:
        """The kernel with its groups as an axis of their own."""
        *window, outputs = super().view()
        groups = self.feature_group_count
        return (*window, groups, outputs // groups)

    def output_axis(self, ndim: int) -> int:
        """Channels are the last axis of a result."""
        return ndim - 1

    def on_outputs(self, values: Array, ndim: int) -> Array:
        """Values (groups, channels of a group) for the channels of a result."""
        return values.reshape((1,) * (ndim - 1) + (-1,))

    def low_rank_output(self, inputs: Array, a: Array, b: Array) -> Array:
        """Multiplies by both factors: x A B."""
        groups, rank = self.feature_group_count, a.shape[-1]
        kernel = jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], groups * rank)
        low = _same_convolution(self, kernel)(inputs)
        low = low.reshape(*low.shape[:-1], groups, rank)
        result = jnp.einsum("...gr,gro->...go", low, b, precision=self.precision)
        return result.reshape(*result.shape[:-2], math.prod(result.shape[-2:]))


def _same_convolution(layer: nnx.Conv, kernel: Array) -> nnx.Conv:
    """A convolution with the settings of `layer` (padding modes included) and another kernel."""
    return nnx.Conv(
        layer.in_features,
        kernel.shape[-1],
        layer.kernel_size,
        layer.strides,
        padding=layer.padding,
        input_dilation=layer.input_dilation,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
        use_bias=False,
        dtype=kernel.dtype,
        precision=layer.precision,
        conv_general_dilated=layer.conv_general_dilated,
        promote_dtype=layer.promote_dtype,
        kernel_init=lambda *_: kernel,
        rngs=nnx.Rngs(0),
    )
