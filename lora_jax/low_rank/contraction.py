"""Low-rank algebra: the roles of a weight's axes, and shapes, initial values, scale and product of factors.

A pre-trained weight W is a linear map with named roles for its axes: `batch` axes hold
independent maps (stacked layers, experts, convolution groups), `inputs` are contracted with
the activations, `outputs` are produced. LoRA (Hu et al. 2021, section 4.1) adds

    W + scale * A B,   A: (*batch, *inputs, rank),   B: (*batch, rank, *outputs)

One record of the roles therefore covers Linear, Einsum, attention projections, convolutions and
stacked layers alike. Everything here is a pure function of arrays.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lora_jax.checks import integer, one_of
from lora_jax.errors import InputError, brief
from lora_jax.ranges import LARGEST

Shape = tuple[int, ...]
Values = Array | np.ndarray  # of factors: an adapter folder's are numpy's
Scaling = Literal["alpha/r", "alpha/sqrt(r)"]
Init = Literal["kaiming", "gaussian", "pissa", "olora", "lora_ga"]
_MOST_AXES = 64  # of a numpy array


@dataclasses.dataclass(frozen=True)
class Contraction:
    """The role of every axis of a weight.

    Attributes:
      batch: axes of independent maps.
      inputs: axes contracted with the activations.
      outputs: axes that appear in the result.
    """

    batch: Shape
    inputs: Shape
    outputs: Shape

    def __post_init__(self) -> None:
        axes = sorted(self.batch + self.inputs + self.outputs)
        if axes != list(range(len(axes))) or not self.inputs or not self.outputs:
            raise InputError(
                f"every weight axis needs one role, with an input and an output: {self}"
            )

    @classmethod
    def from_letters(cls, axes: str) -> Contraction:
        """Roles from one letter for every axis: b for batch, i for inputs, o for outputs.

        `bio` is a tensor of experts (experts, inputs, outputs), `oi` a matrix as PyTorch stores it.

        Raises:
          ValueError: another letter, or no input or no output.
        """
        known = isinstance(axes, str) and len(axes) <= _MOST_AXES and not set(axes) - set("bio")
        if not known or not {"i", "o"} <= set(axes):
            raise InputError(
                f"axes must have one letter for every axis, b (batch), i (input) or o (output), with an "
                f"input and an output, such as 'io' or 'bio'; got {brief(axes)}"
            )
        places = {
            letter: tuple(axis for axis, found in enumerate(axes) if found == letter)
            for letter in "bio"
        }
        return cls(batch=places["b"], inputs=places["i"], outputs=places["o"])

    def by_letter(self) -> dict[str, Shape]:
        """The axes of each role by its letter, as in `from_letters`."""
        return {"b": self.batch, "i": self.inputs, "o": self.outputs}

    @property
    def ndim(self) -> int:
        """Number of axes of the weight."""
        return len(self.batch) + len(self.inputs) + len(self.outputs)

    def stacked(self, count: int) -> Contraction:
        """The same map with `count` further batch axes in front (layers stacked for a scan)."""

        def shift(axes: Shape) -> Shape:
            return tuple(axis + count for axis in axes)

        return Contraction(
            tuple(range(count)) + shift(self.batch), shift(self.inputs), shift(self.outputs)
        )

    def sizes(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        """Splits a weight's shape into its (batch, inputs, outputs) sizes."""
        if len(shape) != self.ndim:
            raise InputError(
                f"a weight of shape {shape} does not have the {self.ndim} axes of {self}"
            )
        batch, inputs, outputs = (
            tuple(shape[axis] for axis in axes) for axes in (self.batch, self.inputs, self.outputs)
        )
        return batch, inputs, outputs

    def to_matrices(
        self, weight: Float[Array, ...]
    ) -> Float[Array, "maps flat_inputs flat_outputs"]:
        """A weight as matrices, one for every map: each role's axes become one."""
        sizes = self.sizes(weight.shape)
        ordered = jnp.transpose(weight, self.batch + self.inputs + self.outputs)
        return ordered.reshape(*(math.prod(size) for size in sizes))

    def from_matrices(
        self, matrices: Float[Array, "maps flat_inputs flat_outputs"], shape: Shape
    ) -> Float[Array, ...]:
        """The inverse of `to_matrices`, for a weight of `shape`."""
        batch, inputs, outputs = self.sizes(shape)
        order = self.batch + self.inputs + self.outputs  # where each axis goes in the weight
        return jnp.transpose(
            matrices.reshape(*batch, *inputs, *outputs),
            tuple(order.index(axis) for axis in range(self.ndim)),
        )


def check_rank(rank: object, limit: int | None = None, where: str = "") -> int:
    """Returns `rank` if it is a usable rank.

    Args:
      rank: a positive integer; a bool is refused although Python calls it an int.
      limit: the smaller side of the matrix; a larger rank buys nothing but parameters.
      where: path of the layer, for the message.

    Raises:
      ValueError: the rank is not a positive integer, or larger than the limit.
    """
    place = f" for {where}" if where else ""
    number = integer("rank", rank, where=place, most=LARGEST)
    if limit is not None and number > limit:
        raise InputError(
            f"rank {rank} is larger than the matrix{place}: its smaller side is {limit}; "
            f"use a rank from 1 to {limit}"
        )
    return number


def scale(rank: int, alpha: float, scaling: Scaling = "alpha/r") -> float:
    """The factor in front of A B: `alpha/r` (paper, section 4.1) or `alpha/sqrt(r)` (rsLoRA).

    Raises:
      ValueError: another `scaling`.
    """
    one_of("scaling", scaling, get_args(Scaling))
    return alpha / (rank if scaling == "alpha/r" else math.sqrt(rank))


def factor_shapes(roles: Contraction, shape: Shape, rank: int) -> tuple[Shape, Shape]:
    """Shapes of A and B for a weight of `shape`."""
    batch, inputs, outputs = roles.sizes(shape)
    return (*batch, *inputs, rank), (*batch, rank, *outputs)


def initial_values(
    key: Key[Array, ""], shape: Shape, fan_in: int, init: Init = "kaiming", std: float = 0.02
) -> Float[Array, ...]:
    """Random start of the factor that is not zero, in float32.

    Args:
      key: random key.
      shape: shape of the factor, batch axes included: each map of a stack draws its own values.
      fan_in: contracted size of ONE map. Taking it from the stacked shape would make the factors
        of L stacked layers sqrt(L) too small.
      init: `kaiming` is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what loralib does; `gaussian` is
        N(0, std^2), what the paper says without naming its std (0.02 is GPT-2's and RoBERTa's).
      std: standard deviation of `gaussian`.

    Raises:
      ValueError: another `init`.
    """
    if init in ("kaiming", "lora_ga"):  # the latter until there are gradients
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    if init == "gaussian":
        return std * jax.random.normal(key, shape, jnp.float32)
    raise InputError(f"init must be 'kaiming' or 'gaussian', got {init!r}")


def product(
    a: Float[Values, "maps inputs rank"], b: Float[Values, "maps rank outputs"]
) -> Float[Array, "maps inputs outputs"]:
    """A B for every map, accumulated in float32 whatever the factors' type."""
    return jnp.einsum(
        "bir,bro->bio",
        a.astype(jnp.float32),
        b.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def as_matrices(
    roles: Contraction, a: Float[Values, ...], b: Float[Values, ...]
) -> tuple[
    Float[Values, "maps flat_inputs rank"],
    Float[Values, "maps rank flat_outputs"],
]:
    """Factors as matrices, one pair for every map.

    Args:
      roles: the axes of the weight.
      a: (*batch, *inputs, rank).
      b: (*batch, rank, *outputs).
    """
    n = len(roles.batch)
    maps, rank = math.prod(a.shape[:n]), a.shape[-1]
    return a.reshape(maps, -1, rank), b.reshape(maps, rank, -1)


def delta(
    roles: Contraction, a: Float[Values, ...], b: Float[Values, ...], scale: float
) -> Float[Array, ...]:
    """scale * A B in the axis order of the weight, in float32.

    Args:
      roles: the axes of the weight.
      a: (*batch, *inputs, rank).
      b: (*batch, rank, *outputs).
      scale: alpha/r or alpha/sqrt(r).
    """
    n = len(roles.batch)
    sizes = dict(zip(roles.batch, a.shape[:n], strict=True))
    sizes |= dict(zip(roles.inputs, a.shape[n:-1], strict=True))
    sizes |= dict(zip(roles.outputs, b.shape[n + 1 :], strict=True))
    dense = scale * product(*as_matrices(roles, a, b))
    return roles.from_matrices(dense, tuple(sizes[axis] for axis in range(roles.ndim)))


def on_axes(values: Float[Array, ...], axes: Shape, ndim: int) -> Float[Array, ...]:
    """Values in a shape that broadcasts against an array.

    Args:
      values: (one size for each of `axes`, in their order).
      axes: of the array.
      ndim: number of axes of the array.
    """
    shape = [1] * ndim
    for axis, size in zip(axes, values.shape, strict=True):
        shape[axis] = size
    return jnp.transpose(values, sorted(range(len(axes)), key=axes.__getitem__)).reshape(shape)
