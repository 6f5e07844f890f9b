"""What an update amplifies: the projections U^T W V^T of section 7.3 and appendix H.4 (Table 7).

U and V are the singular vectors of an update. ||U^T W V^T||_F measures how much of the pre-trained
weight W lies in the directions of the update, and ||Delta W||_F divided by it is the amplification
factor. The update here is the effective one, (alpha/r) B A, so the factor is proportional to alpha; the
paper does not say whether its Delta W includes alpha/r.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.analysis.similarity import Matrix
from lora_jax.analysis.spectra import delta_svd
from lora_jax.errors import InputError


class Amplification(NamedTuple):
    """The numbers of Table 7 at one rank r, one value per layer.

    Attributes:
      in_delta: ||U^T W V||_F with U and V the first r singular directions of the update.
      in_weight: the same with the first r singular directions of W itself, that is the root of the
        sum of its r largest squared singular values.
      in_random: the same with the directions of a Gaussian matrix; root mean square over the draws.
      in_random_expected: the expected value of `in_random`, ||W||_F r / sqrt(inputs * outputs).
      delta_norm: ||Delta W||_F of the whole effective update, whatever r is.
      weight_norm: ||W||_F.
      factor: delta_norm / in_delta.
    """

    in_delta: Float[np.ndarray, " layers"]
    in_weight: Float[np.ndarray, " layers"]
    in_random: Float[np.ndarray, " layers"]
    in_random_expected: Float[np.ndarray, " layers"]
    delta_norm: Float[np.ndarray, " layers"]
    weight_norm: Float[np.ndarray, " layers"]
    factor: Float[np.ndarray, " layers"]


def projected_norm(
    u: Float[Matrix, "*layers inputs r"],
    matrix: Float[Matrix, "*layers inputs outputs"],
    v: Float[Matrix, "*layers outputs r"],
) -> Float[np.ndarray, "*layers"]:
    """Computes ||U^T W V||_F for directions U and V.

    The paper's W is the transpose of ours, and its V has the vectors as rows; the norm is the same.

    Args:
      u: directions in the input space, as orthonormal columns.
      matrix: W, with the inputs first.
      v: directions in the output space, as orthonormal columns.
    """
    u, matrix, v = (np.asarray(x, np.float64) for x in (u, matrix, v))
    norms: np.ndarray = np.linalg.norm(np.swapaxes(u, -1, -2) @ matrix @ v, axis=(-1, -2))
    return norms


def amplification(
    pair: FactorPair,
    matrices: Float[Matrix, "layers inputs outputs"],
    key: Key[Array, ""],
    rank: int | None = None,
    draws: int = 8,
) -> Amplification:
    """Computes one row of Table 7 for every layer.

    Args:
      pair: the factors of the update.
      matrices: pre-trained weights of the same layers, from `factor_pairs.base_matrices`.
      key: random key of the random directions.
      rank: number r of directions; the rank of the update by default, as in the paper.
      draws: number of random matrices to average over.

    Raises:
      ValueError: the shapes do not fit, or `rank` is not from 1 to the rank of the update.
    """
    if (pair.layers, pair.a.shape[1], pair.b.shape[2]) != matrices.shape:
        raise InputError(
            f"an update of {pair.layers} x {pair.a.shape[1]} x {pair.b.shape[2]} does not fit weights "
            f"of shape {matrices.shape}; both are (layers, inputs, outputs)"
        )
    r = pair.rank if rank is None else rank
    if not 0 < r <= pair.rank:
        raise InputError(f"rank {rank} is not from 1 to the update's, {pair.rank}")
    u, delta_values, v = delta_svd(pair)
    weights = np.asarray(matrices, np.float64)
    weight_values = np.linalg.svd(weights, compute_uv=False)
    in_delta = projected_norm(u[..., :r], weights, v[..., :r])
    in_random = [_norm_in_random_directions(k, weights, r) for k in jax.random.split(key, draws)]
    delta_norm = np.linalg.norm(delta_values, axis=-1)
    weight_norm = np.linalg.norm(weight_values, axis=-1)
    return Amplification(
        in_delta=in_delta,
        in_weight=np.linalg.norm(weight_values[..., :r], axis=-1),
        in_random=np.sqrt(np.mean(np.square(in_random), axis=0)),
        in_random_expected=weight_norm * r / np.sqrt(weights.shape[1] * weights.shape[2]),
        delta_norm=delta_norm,
        weight_norm=weight_norm,
        factor=delta_norm / in_delta,
    )


def _norm_in_random_directions(
    key: Key[Array, ""], matrices: Float[np.ndarray, "layers inputs outputs"], r: int
) -> Float[np.ndarray, " layers"]:
    """The projected norm for r random directions on either side, drawn separately for each layer."""
    # The Q of a thin Gaussian matrix is distributed as the first r singular vectors of a square one.
    layers, inputs, outputs = matrices.shape
    u, v = (
        np.linalg.qr(np.asarray(jax.random.normal(k, (layers, size, r)), np.float64))[0]
        for k, size in zip(jax.random.split(key), (inputs, outputs), strict=True)
    )
    return projected_norm(u, matrices, v)
