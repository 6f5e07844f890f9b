"""The layers that the U-Net and the autoencoder consist of; images are (batch, height, width, channels)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.models.parts import Computes, all_but_kernel, cast_again
from lora_jax.models.stack import Remat
from lora_jax.sharding.axes import constrain, named

Image = Float[Array, "batch height width channels"]
# As PyTorch draws them: uniform, with a variance of 1/3 over the number of inputs.
INITIAL = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
SAME = ((1, 1), (1, 1))  # for a window of 3 x 3
_Output = TypeVar("_Output")


@runtime_checkable
class Settings(Computes, Protocol):
    """What the layers read of a model's configuration."""

    @property
    def norm_num_groups(self) -> int:
        """Groups of channels that are normalised together."""
        ...


def dense(
    settings: Computes,
    axes: tuple[str | None, str | None],
    sizes: tuple[int, int],
    rngs: nnx.Rngs,
    bias: bool = True,
) -> nnx.Linear:
    """A linear layer.

    Args:
      settings: of the model.
      axes: logical axes of inputs and outputs.
      sizes: numbers of inputs and outputs.
      rngs: for the kernel's initial values.
      bias: whether it has one.
    """
    return nnx.Linear(
        *sizes, use_bias=bias, dtype=jnp.dtype(settings.compute_dtype),
        promote_dtype=all_but_kernel, dot_general=cast_again, kernel_init=INITIAL,
        kernel_metadata=named(*axes), bias_metadata=named(_vector(axes[1])), rngs=rngs,
    )  # fmt: skip


def conv(
    settings: Computes,
    axes: tuple[str | None, str | None],
    sizes: tuple[int, int],
    rngs: nnx.Rngs,
    *,
    window: int = 3,
    stride: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> nnx.Conv:
    """A convolution over height and width.

    Args:
      settings: of the model.
      axes: logical axes of input and output channels.
      sizes: their numbers.
      rngs: for the kernel's initial values.
      window: height and width of the kernel.
      stride: steps between windows.
      padding: zeros before and behind, of height and width; None: the output is as large as the input.
    """
    reach = window // 2
    return nnx.Conv(
        *sizes, (window, window), strides=(stride, stride),
        padding=padding or ((reach, reach), (reach, reach)),
        dtype=jnp.dtype(settings.compute_dtype), promote_dtype=all_but_kernel,
        conv_general_dilated=_convolution, kernel_init=INITIAL,
        kernel_metadata=named(None, None, *axes), bias_metadata=named(_vector(axes[1])), rngs=rngs,
    )  # fmt: skip


def _vector(axis: str | None) -> str | None:
    """A bias of the model's width is added to activations that are whole on every device of `fsdp`."""
    return "width" if axis == "embed" else axis


def _convolution(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """In the type of x, for which the backward pass casts the kernel again: a copy is not kept."""

    def convolution(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), *args, **kwargs)

    if kernel.dtype == x.dtype:
        return convolution(x, kernel)
    result: Array = jax.checkpoint(convolution)(x, kernel)
    return result


class GroupNorm(nnx.GroupNorm):
    """Flax's GroupNorm over an image; the backward pass keeps the input only.

    Attributes:
      activation: of the normalised values, which is not kept either.
    """

    activation: Callable[[Array], Array] | None = None

    def __call__(self, x: Image, **settings: Any) -> Image:
        """Normalises groups of channels over all pixels, and activates, see the base class."""
        normalise = super().__call__

        def whole(x: Array) -> Array:
            y: Array = normalise(x, **settings)
            return y if self.activation is None else self.activation(y)

        result: Array = jax.checkpoint(whole)(x)
        return result


def group_norm(
    settings: Settings,
    channels: int,
    epsilon: float,
    rngs: nnx.Rngs,
    *,
    silu: bool = True,
    axis: str = "width",
) -> GroupNorm:
    """A GroupNorm, by default with SiLU behind it; its statistics are float32.

    Args:
      settings: of the model.
      channels: of the image.
      epsilon: added to the variance.
      rngs: Flax asks for them.
      silu: whether SiLU comes behind it.
      axis: logical name of the channels.
    """
    made = GroupNorm(
        channels,
        settings.norm_num_groups,
        epsilon=epsilon,
        dtype=jnp.dtype(settings.compute_dtype),
        use_fast_variance=False,  # which loses digits where the mean is large
        scale_metadata=named(axis),
        bias_metadata=named(axis),
        rngs=rngs,
    )
    made.activation = jax.nn.silu if silu else None
    return made


class _OneKey(nnx.Rngs):
    """Gives the same key each time: counting them is most of the work of tracing a model of 700 arrays."""

    def __init__(self) -> None:
        pass

    def params(self) -> Array:
        """The key."""
        return jax.random.key(0)


def in_shapes(make: Callable[[Any, nnx.Rngs], _Output], config: Any) -> _Output:
    """The model that `make` makes of a configuration, with shapes in place of arrays."""
    model: _Output = nnx.eval_shape(lambda: make(config, _OneKey()))
    return model


def on_devices(x: Image) -> Image:
    """An image that is split over the devices by its batch."""
    return constrain(x, "batch", None, None, "width")


def checkpointed(remat: Remat, layer: Callable[..., _Output], *args: Any) -> _Output:
    """Calls a layer, of which the backward pass keeps what `remat` says, see `UNetConfig`."""
    if remat == "none":
        return layer(*args)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    result: _Output = nnx.remat(_call, policy=policy)(layer, *args)
    return result


def _call(layer: Callable[..., Any], *args: Any) -> Any:
    return layer(*args)
