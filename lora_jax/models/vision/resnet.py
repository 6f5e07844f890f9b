"""Residual convolutional nets with a classification head (He et al. 2016, arXiv 1512.03385).

Blocks are `basic` (two 3x3 convolutions) or `bottleneck` (1x1, 3x3, 1x1), as transformers'
`ResNetForImageClassification` and torchvision have them; pictures are (n, height, width, channels) here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lora_jax.errors import InputError
from lora_jax.models import ranges
from lora_jax.models.parts import check_compute_dtype
from lora_jax.models.vision.head import Head, check_pictures
from lora_jax.ranges import Flag, OneOf, Range, Several, Whole

REDUCTION = 4  # of the channels inside of a bottleneck
_SIZES = Several(of=ranges.WIDTH, different=False)

# Of the fields that config.json has, see `ResNetConfig`.
RANGES: Mapping[str, Range] = {
    "num_channels": ranges.WIDTH,
    "embedding_size": ranges.WIDTH,
    "hidden_sizes": _SIZES,
    "depths": Several(of=Whole(most=1000), different=False),
    "layer_type": OneOf(("basic", "bottleneck")),
    "downsample_in_first_stage": Flag(),
    "downsample_in_bottleneck": Flag(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes and settings of a ResNet; names and defaults follow Hugging Face's config.json (ResNet-50).

    A stage has `depths` blocks with outputs of `hidden_sizes` channels; its first block halves the sides of
    the picture, in the first stage only with `downsample_in_first_stage`. In a bottleneck the 3x3
    convolution does that (as in torchvision), or the first one with `downsample_in_bottleneck`. `stem`
    "standard" is a 7x7 convolution and a pooling that make a picture a quarter as wide; "small" is a 3x3
    convolution that leaves the size as it is, for pictures of 16 or 32 pixels, which config.json knows
    nothing of. `compute_dtype` is the type of activations below the head.

    Raises:
      ValueError: a field is out of its range, there are not as many sizes as depths, or a bottleneck's width
        is no multiple of 4.
    """

    architecture: ClassVar[str] = "resnet"

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    stem: Literal["standard", "small"] = "standard"
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        ranges.check(self, {**RANGES, "stem": OneOf(("standard", "small"))})
        if len(self.depths) != len(self.hidden_sizes):
            raise InputError(
                f"depths {self.depths} and hidden_sizes {self.hidden_sizes} must have an entry for every "
                "stage"
            )
        odd = [size for size in self.hidden_sizes if size % REDUCTION]
        if self.layer_type == "bottleneck" and odd:
            raise InputError(
                f"hidden_sizes of bottlenecks must be multiples of {REDUCTION}, got {odd}"
            )


class BatchNorm(nnx.BatchNorm):
    """Flax's BatchNorm with PyTorch's running variance: that of a sample, over n - 1 values instead of n."""

    def __call__(
        self, x: Float[Array, "n height width channels"], *args: Any, **settings: Any
    ) -> Float[Array, "n height width channels"]:
        """Normalises channels, by the batch in training and by the running statistics in evaluation."""
        assert self.var is not None
        before = self.var.get_raw_value()
        result: Array = super().__call__(x, *args, **settings)
        after = self.var.get_raw_value()
        if after is not before:  # in training
            values = x.size // x.shape[-1]
            kept = self.momentum * before
            self.var.set_value(kept + (after - kept) * (values / max(values - 1, 1)))
        return result


class ConvNorm(nnx.Module):
    """A convolution without bias, and BatchNorm."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, window: int, stride: int, rngs: nnx.Rngs
    ):  # fmt: skip
        dtype = jnp.dtype(config.compute_dtype)
        self.conv = nnx.Conv(
            inputs, outputs, (window, window), strides=stride, padding=window // 2, use_bias=False,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"), dtype=dtype,
            rngs=rngs,
        )  # fmt: skip
        self.norm = BatchNorm(outputs, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n height width channels"]
    ) -> Float[Array, "n rows columns outputs"]:
        """Convolves and normalises."""
        result: Array = self.norm(self.conv(x))
        return result


class ResidualBlock(nnx.Module):
    """Two or three convolutions beside a shortcut, which has a convolution where the shapes differ."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs
    ):  # fmt: skip
        if config.layer_type == "basic":
            # Width, window and stride of each.
            sizes = [(outputs, 3, stride), (outputs, 3, 1)]
        else:
            inner, early = outputs // REDUCTION, config.downsample_in_bottleneck
            strides = (stride, 1) if early else (1, stride)
            sizes = [(inner, 1, strides[0]), (inner, 3, strides[1]), (outputs, 1, 1)]
        widths = [inputs, *(width for width, _, _ in sizes)]
        self.convs = nnx.List(
            ConvNorm(config, before, width, window, step, rngs)
            for before, (width, window, step) in zip(widths, sizes, strict=False)
        )
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else ConvNorm(config, inputs, outputs, 1, stride, rngs)

    def __call__(
        self, x: Float[Array, "n height width channels"]
    ) -> Float[Array, "n rows columns outputs"]:
        """Adds what the convolutions make of x to x, or to its shortcut."""
        y = x
        for number, conv in enumerate(self.convs):
            y = conv(y if number == 0 else jax.nn.relu(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Stage(nnx.Module):
    """Blocks of one width."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, depth: int, stride: int, rngs: nnx.Rngs
    ):  # fmt: skip
        self.blocks = nnx.List(
            ResidualBlock(config, outputs if n else inputs, outputs, 1 if n else stride, rngs)
            for n in range(depth)
        )

    def __call__(
        self, x: Float[Array, "n height width channels"]
    ) -> Float[Array, "n rows columns outputs"]:
        """Runs the blocks in order."""
        for block in self.blocks:
            x = block(x)
        return x


class ResNet(nnx.Module):
    """A residual net, the mean over the places of its last stage, and a head for `num_outputs` classes.

    BatchNorm normalises by the batch, and moves its running statistics, unless the model is in evaluation
    mode (`model.eval()`).
    """

    def __init__(self, config: ResNetConfig, num_outputs: int, rngs: nnx.Rngs):
        window, stride = (7, 2) if config.stem == "standard" else (3, 1)
        width = config.embedding_size
        self.stem = ConvNorm(config, config.num_channels, width, window, stride, rngs)
        widths = (width, *config.hidden_sizes)
        strides = (2 if config.downsample_in_first_stage else 1, *[2] * len(config.depths[1:]))
        self.stages = nnx.List(
            Stage(config, widths[n], widths[n + 1], depth, strides[n], rngs)
            for n, depth in enumerate(config.depths)
        )
        self.head = Head(widths[-1], num_outputs, rngs)
        self.config = config

    def __call__(
        self,
        images: Float[Array | np.ndarray, "n height width channels"],
        *,
        key: jax.Array | None = None,
    ) -> Float[Array, "n outputs"]:
        """Logits (float32) of pictures of any size; `key` is not needed, as nothing is dropped.

        Raises:
          ValueError: pictures with another number of channels.
        """
        check_pictures(images, self.config.num_channels)
        x = jax.nn.relu(self.stem(jnp.asarray(images)))
        if self.config.stem == "standard":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(axis=(1, 2), dtype=jnp.float32))
