"""What convolutions of Flax NNX and of Flax Linen share: roles of axes, and the way through A and B."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Contraction, Shape
from lora_jax.low_rank.kinds import Kind
from lora_jax.low_rank.update_settings import UpdateSettings


class ConvKind(Kind):
    """A convolution to `rank` channels per group, then a 1x1 map to the outputs.

    A has the kernel's window, stride, padding and dilation. Groups are batch axes: every group has
    factors of its own, of `rank` each.
    """

    in_all_linear = False

    def check(self, settings: UpdateSettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        refuse_mask(self.configured())
        if settings.fused and self.groups() != 1:
            raise InputError("a grouped Conv has no parts to choose; adapt the whole layer")

    def groups(self) -> int:
        """Number of groups of channels."""
        groups: int = self.configured().feature_group_count
        return groups

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        window = tuple(range(window_ndim(self.configured()) + 1))
        group = len(window)
        return Contraction(batch=(group,), inputs=window, outputs=(group + 1,))

    def weight_ndim(self) -> int:
        """Axes of one kernel: window, inputs, outputs."""
        return window_ndim(self.configured()) + 2

    def view(self) -> Shape:
        """The kernel with its groups as an axis of their own."""
        *window, outputs = super().view()
        return (*window, self.groups(), outputs // self.groups())

    def output_axis(self, ndim: int) -> int:
        """Channels are the last axis of a result."""
        return ndim - 1

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (groups, channels of a group) for the channels of a result."""
        return values.reshape((1,) * (ndim - 1) + (-1,))

    def feature_axes(self) -> Shape:
        """The channels, and not the window."""
        return self.roles().inputs[-1:]

    def on_inputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (groups, channels of a group) for the channels of inputs."""
        return values.reshape((1,) * (ndim - 1) + (-1,))

    def low_rank_output(
        self, inputs: Inexact[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """Multiplies by both factors: x A B."""
        groups, rank = self.groups(), a.shape[-1]
        kernel = jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], groups * rank)
        low = self.own_product(inputs, kernel)
        low = low.reshape(*low.shape[:-1], groups, rank)
        result = jnp.einsum("...gr,gro->...go", low, b, precision=self.second_precision())
        return result.reshape(*result.shape[:-2], math.prod(result.shape[-2:]))


class ConvTransposeKind(Kind):
    """A transposed convolution to `rank` channels, then a 1x1 map to the outputs."""

    in_all_linear = False

    def check(self, settings: UpdateSettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        refuse_mask(self.configured())

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel: outputs come before inputs if it is stored transposed."""
        n = window_ndim(self.configured())
        inputs, outputs = (n + 1, n) if self.configured().transpose_kernel else (n, n + 1)
        return Contraction(batch=(), inputs=(*range(n), inputs), outputs=(outputs,))

    def feature_axes(self) -> Shape:
        """The channels, and not the window."""
        return self.roles().inputs[-1:]

    def low_rank_output(
        self, inputs: Inexact[Array, ...], a: Inexact[Array, ...], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """Multiplies by both factors: x A B."""
        transposed = self.configured().transpose_kernel
        low = self.own_product(inputs, jnp.swapaxes(a, -1, -2) if transposed else a)
        return jnp.matmul(low, b, precision=self.second_precision())


def window_ndim(layer: Any) -> int:
    """Number of axes over which a convolution slides."""
    return 1 if isinstance(layer.kernel_size, int) else len(layer.kernel_size)


def refuse_mask(layer: Any) -> None:
    """Raises ValueError for a convolution whose kernel is masked."""
    if layer.mask is not None:
        name = type(layer).__name__.removeprefix("LoRA")
        raise InputError(
            f"a masked {name} has no LoRA form: the mask would cut the delta; leave the layer out"
        )
