"""Singular values of low-rank updates, and how many directions they use.

A spectrum is (layers, k), largest first. An update that is zero has no effective rank: NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import xlogy

from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.analysis.similarity import Matrix


class DeltaSVD(NamedTuple):
    """The effective update's thin SVD: scale * a b = inputs diag(values) outputs^T, per layer.

    Attributes:
      inputs: directions in the input space, as columns (the paper's right-singular vectors).
      values: singular values, largest first.
      outputs: directions in the output space, as columns.
    """

    inputs: Float[np.ndarray, "layers inputs rank"]
    values: Float[np.ndarray, "layers rank"]
    outputs: Float[np.ndarray, "layers outputs rank"]


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
    inputs, left = np.linalg.qr(np.asarray(pair.a, np.float64))
    outputs, right = np.linalg.qr(np.swapaxes(np.asarray(pair.b, np.float64), -1, -2))
    u, values, vt = np.linalg.svd(left @ np.swapaxes(right, -1, -2))
    return DeltaSVD(inputs @ u, pair.scale * values, outputs @ np.swapaxes(vt, -1, -2))


def energy(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, "layers k"]:
    """Share of the squared Frobenius norm in the first 1, 2, ... directions."""
    squares = _relative(values) ** 2
    return np.cumsum(squares, axis=-1) / squares.sum(axis=-1, keepdims=True)


def stable_rank(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, " layers"]:
    """||.||_F^2 / ||.||_2^2: 1 if one direction has all the energy, k if all are equal."""
    return (_relative(values) ** 2).sum(axis=-1)


def _relative(values: Matrix) -> np.ndarray:
    """Over the largest: squares stay in range, and of a zero update all is NaN."""
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        return values / values[..., :1]


def entropy_rank(values: Float[Matrix, "layers k"]) -> Float[np.ndarray, " layers"]:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007), from 1 to k."""
    shares = _relative(values)
    shares = shares / shares.sum(axis=-1, keepdims=True)
    return np.exp(-xlogy(shares, shares).sum(axis=-1))


def rank_for_energy(
    values: Float[Matrix, "layers k"], share: float = 0.9
) -> Int[np.ndarray, " layers"]:
    """The fewest directions that hold a share of the squared Frobenius norm; 0 of a zero update.

    Directions that hold less than a millionth of the energy together do not count: they may be
    the rounding of the factors' float32.

    Raises:
      ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share!r}")
    reached = energy(values) >= share * (1 - 1e-6)
    return np.where(np.asarray(values)[..., 0] > 0, np.argmax(reached, axis=-1) + 1, 0)
