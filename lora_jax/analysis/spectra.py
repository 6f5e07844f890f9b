"""Singular values of low-rank updates, and how many directions they use.

A spectrum is (layers, k), largest first. An update that is zero has no effective rank: NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lora_jax.analysis.factor_pairs import FactorPair

_HIGHEST = jax.lax.Precision.HIGHEST


class DeltaSVD(NamedTuple):
    """The effective update's thin SVD: scale * a b = inputs diag(values) outputs^T, per layer.

    Attributes:
      inputs: directions in the input space, as columns (the paper's right-singular vectors).
      values: singular values, largest first.
      outputs: directions in the output space, as columns.
    """

    inputs: Float[Array, "layers inputs rank"]
    values: Float[Array, "layers rank"]
    outputs: Float[Array, "layers outputs rank"]


def delta_svd(pair: FactorPair) -> DeltaSVD:
    """SVD of the effective updates without forming them: QR of both factors, SVD of the r x r core.

    Raises:
      ValueError: the rank is larger than one side of the matrix.
    """
    if pair.rank > min(pair.a.shape[1], pair.b.shape[2]):
        raise ValueError(
            f"rank {pair.rank} is larger than a side of the {pair.a.shape[1]} x {pair.b.shape[2]} "
            "matrix"
        )
    return _thin_svd(pair.a, pair.b, pair.scale)


@jax.jit
def _thin_svd(a: Array, b: Array, scale: float) -> DeltaSVD:
    inputs, left = jnp.linalg.qr(a)
    outputs, right = jnp.linalg.qr(jnp.swapaxes(b, -1, -2))
    core = jnp.einsum("lij,lkj->lik", left, right, precision=_HIGHEST)
    u, values, vt = jnp.linalg.svd(core)
    product = lambda x, y, form: jnp.einsum(form, x, y, precision=_HIGHEST)  # noqa: E731
    return DeltaSVD(
        product(inputs, u, "ldi,lij->ldj"),
        scale * values,
        product(outputs, vt, "ldi,lji->ldj"),
    )


def energy(values: Float[Array, "layers k"]) -> Float[Array, "layers k"]:
    """Share of the squared Frobenius norm in the first 1, 2, ... directions."""
    squares = _relative(values) ** 2
    return jnp.cumsum(squares, axis=-1) / squares.sum(axis=-1, keepdims=True)


def stable_rank(values: Float[Array, "layers k"]) -> Float[Array, " layers"]:
    """||.||_F^2 / ||.||_2^2: 1 if one direction has all the energy, k if all are equal."""
    return (_relative(values) ** 2).sum(axis=-1)


def _relative(values: Array) -> Array:
    """Over the largest, so that squares stay in float32's range."""
    return values / values[..., :1]


def entropy_rank(values: Float[Array, "layers k"]) -> Float[Array, " layers"]:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007), from 1 to k."""
    shares = values / values.sum(axis=-1, keepdims=True)
    return jnp.exp(-jax.scipy.special.xlogy(shares, shares).sum(axis=-1))


def rank_for_energy(values: Float[Array, "layers k"], share: float = 0.9) -> Int[Array, " layers"]:
    """The fewest directions that hold a share of the squared Frobenius norm; 0 of a zero update.

    Directions that hold less than a millionth of the energy together do not count.

    Raises:
      ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share!r}")
    # Rounding may leave the last cumulative share a little below 1.
    reached = energy(values) >= share * (1 - 1e-6)
    return jnp.where(values[..., 0] > 0, jnp.argmax(reached, axis=-1) + 1, 0)
