"""Singular values of low-rank updates, and how many directions the updates use.

A spectrum holds the singular values of all layers, (layers, k), the largest first. The effective rank
of an update that is zero is not defined: NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.analysis.similarity import Matrix
from lora_jax.errors import InputError


class DeltaSVD(NamedTuple):
    """The thin SVD of an effective update: scale * a b = inputs diag(values) outputs^T per layer.

    Attributes:
      inputs: directions in the input space, as columns (the paper's right-singular vectors).
      values: singular values, largest first.
      outputs: directions in the output space, as columns.
    """

    inputs: Float[np.ndarray, "layers inputs rank"]
    values: Float[np.ndarray, "layers rank"]
    outputs: Float[np.ndarray, "layers outputs rank"]


def delta_svd(pair: FactorPair) -> DeltaSVD:
    """The SVD of the effective updates, without forming them.

    Both factors are decomposed by QR, and the r x r matrix between the two Q by SVD.

    Raises:
      ValueError: the rank is larger than the number of inputs or outputs.
    """
    if pair.rank > min(pair.a.shape[1], pair.b.shape[2]):
        raise InputError(
            f"rank {pair.rank} is larger than a side of the {pair.a.shape[1]} x {pair.b.shape[2]} "
            "matrix"
        )
    inputs, left = np.linalg.qr(np.asarray(pair.a, np.float64))
    outputs, right = np.linalg.qr(np.swapaxes(np.asarray(pair.b, np.float64), -1, -2))
    u, values, vt = np.linalg.svd(left @ np.swapaxes(right, -1, -2))
    return DeltaSVD(inputs @ u, pair.scale * values, outputs @ np.swapaxes(vt, -1, -2))


def any_delta_svd(pair: FactorPair) -> DeltaSVD:
    """As `delta_svd`, of factors of any rank: the update is formed where that is larger than a side."""
    if pair.rank <= min(pair.a.shape[1], pair.b.shape[2]):
        return delta_svd(pair)
    return matrix_svd(pair.scale * np.matmul(pair.a, pair.b))


def matrix_svd(deltas: Float[Matrix, "layers inputs outputs"]) -> DeltaSVD:
    """The thin SVD of updates that are given as matrices."""
    u, values, vt = np.linalg.svd(np.asarray(deltas, np.float64), full_matrices=False)
    return DeltaSVD(u, values, np.swapaxes(vt, -1, -2))


def energy(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, "layers k"]:
    """The share of the squared Frobenius norm in the first 1, 2, ..., k directions."""
    squares = _relative(values) ** 2
    shares: np.ndarray = np.cumsum(squares, axis=-1) / squares.sum(axis=-1, keepdims=True)
    return shares


def stable_rank(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, " layers"]:
    """||.||_F^2 / ||.||_2^2: 1 if one direction has all the energy, k if all are equal."""
    ranks: np.ndarray = (_relative(values) ** 2).sum(axis=-1)
    return ranks


def _relative(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, "layers k"]:
    """Values divided by the largest one: squares stay in range, and a zero update becomes NaN."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        return values / values[..., :1]


def entropy_rank(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, " layers"]:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007), from 1 to k."""
    from scipy.special import xlogy  # not of the core, which needs the rest of this module

    shares = _relative(values)
    shares = shares / shares.sum(axis=-1, keepdims=True)
    ranks: np.ndarray = np.exp(-xlogy(shares, shares).sum(axis=-1))
    return ranks


def rank_for_energy(
    values: Float[Matrix, "layers k"], share: float = 0.9
) -> Int[np.ndarray, " layers"]:
    """The smallest number of directions that hold a share of the squared Frobenius norm.

    Directions that hold less than a millionth of the energy together do not count: they may come from
    the rounding of the factors to float32.

    Args:
      values: a spectrum.
      share: the share, above 0 and at most 1.

    Returns:
      The number for every layer; 0 for an update that is zero.

    Raises:
      ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {share!r}")
    reached = energy(values) >= share * (1 - 1e-6)
    return np.where(np.asarray(values)[..., 0] > 0, np.argmax(reached, axis=-1) + 1, 0)
