"""Outputs of models as `verify` compares them: array by array, without what masks put in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Root mean squares of every output array, and the sizes of gradients.

    Attributes:
      base: of the pre-trained model's outputs.
      unmerged: of the adapted model's.
      change: of the difference of the two.
      difference: of the difference between the merged and the unmerged model's.
      gradients: the largest size in each factor's gradient, for every layer of a stack.
    """

    base: np.ndarray
    unmerged: np.ndarray
    change: np.ndarray
    difference: np.ndarray
    gradients: dict[str, np.ndarray]

    @property
    def size(self) -> np.ndarray:
        """Of the outputs."""
        larger: np.ndarray = np.maximum(self.base, self.unmerged)
        return larger

    @property
    def is_finite(self) -> bool:
        """Whether all outputs are numbers."""
        compared = np.isfinite(self.base)  # others are masks throughout
        sizes = (self.unmerged + self.difference)[compared]
        return bool(len(sizes) and np.all(np.isfinite(sizes)))

    @property
    def effect(self) -> float:
        """The change as a share of the outputs, of the array where it is largest."""
        return float(np.max(ratio(self.change, self.size)))

    def disagreement(self, noise: float) -> float:
        """The difference as a share of the change, of the array where it is largest.

        Args:
          noise: a share of the outputs; smaller differences are rounding.
        """
        shares = ratio(self.difference, self.change)
        return float(np.max(np.where(self.difference > noise * self.size, shares, 0.0)))


def ratio(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Shares, element by element; 0 of nothing is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, values / others, 0.0)


def numbers(outputs: Any) -> Iterator[Array]:
    """The arrays and numbers of an output, also in dataclasses that JAX does not know."""
    for leaf in jax.tree.leaves(outputs):
        if dataclasses.is_dataclass(leaf):
            for value in vars(leaf).values():
                yield from numbers(value)
        elif isinstance(leaf, jax.Array | np.ndarray | bool | int | float | complex):
            yield jnp.asarray(leaf)


def moderate(values: Array) -> Array:
    """Where outputs are numbers, and not the very small ones that masks put in."""
    return jnp.isfinite(values) & (jnp.abs(values) < 1e8)


def differences(values: list[Array], others: list[Array]) -> list[Array]:
    """Array by array."""
    return [one - other for one, other in zip(values, others, strict=True)]


def sizes(values: list[Array], kept: list[Array]) -> Float[Array, " outputs"]:
    """Root mean squares of arrays where they are kept; no number for one that is kept nowhere."""

    def size(leaf: Array, where: Array) -> Array:
        single = leaf.astype(jnp.float32)
        squares = jnp.where(where, single, jnp.zeros_like(single)) ** 2
        return jnp.sqrt(jnp.sum(squares) / jnp.sum(where))

    return jnp.stack([size(leaf, where) for leaf, where in zip(values, kept, strict=True)])
