"""What an update amplifies: the projections U^T W V^T of section 7.3 and appendix H.4 (Table 7).

With U and V the singular vectors of an update, ||U^T W V^T||_F is how much of the pre-trained weight
W lies in the update's directions, and ||Delta W||_F over it is the amplification factor. The update
here is the effective one, (alpha/r) B A, with which the factor grows in proportion; the paper does not
say which it took.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.analysis.similarity import Matrix
from lora_jax.analysis.spectra import delta_svd


class Amplification(NamedTuple):
    """Table 7's figures at one rank, one value per layer.

    Attributes:
      in_delta: ||U^T W V||_F with U, V the first r singular directions of the update.
      in_weight: the same with W's own first r: the root of the sum of its largest r squared values.
      in_random: the same with those of a Gaussian matrix, the root mean square over draws.
      in_random_expected: its expectation, ||W||_F r / sqrt(inputs * outputs).
      delta_norm: ||Delta W||_F of the whole effective update.
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
    """||U^T W V||_F for orthonormal columns U and V.

    The paper's W is the transpose of ours, and its V has the vectors as rows; the norm is the same.
    """
    u, matrix, v = (np.asarray(x, np.float64) for x in (u, matrix, v))
    return np.linalg.norm(np.swapaxes(u, -1, -2) @ matrix @ v, axis=(-1, -2))


def amplification(
    pair: FactorPair,
    matrices: Float[Matrix, "layers inputs outputs"],
    key: Key[Array, ""],
    rank: int | None = None,
    draws: int = 8,
) -> Amplification:
    """One row of Table 7 for every layer.

    Args:
      pair: the update.
      matrices: the pre-trained weights of the same layers, from `base_matrices`.
      key: for the random directions.
      rank: how many directions; all of the update by default, as in the paper.
      draws: random matrices to average over.

    Raises:
      ValueError: shapes that do not fit, or a rank above the update's.
    """
    if (pair.layers, pair.a.shape[1], pair.b.shape[2]) != matrices.shape:
        raise ValueError(
            f"an update of {pair.layers} x {pair.a.shape[1]} x {pair.b.shape[2]} does not fit weights "
            f"of shape {matrices.shape}"
        )
    r = pair.rank if rank is None else rank
    if not 0 < r <= pair.rank:
        raise ValueError(f"rank {rank} is not from 1 to the update's, {pair.rank}")
    u, values, v = delta_svd(pair)
    u, v = u[..., :r], v[..., :r]
    whole = np.asarray(matrices, np.float64)
    own = np.linalg.svd(whole, compute_uv=False)
    drawn = [_random(k, whole, r) for k in jax.random.split(key, draws)]
    inside = projected_norm(u, whole, v)
    delta_norm, weight_norm = np.linalg.norm(values, axis=-1), np.linalg.norm(own, axis=-1)
    return Amplification(
        in_delta=inside,
        in_weight=np.linalg.norm(own[..., :r], axis=-1),
        in_random=np.sqrt(np.mean(np.square(drawn), axis=0)),
        in_random_expected=weight_norm * r / np.sqrt(whole.shape[1] * whole.shape[2]),
        delta_norm=delta_norm,
        weight_norm=weight_norm,
        factor=delta_norm / inside,
    )


def _random(key: Key[Array, ""], matrices: np.ndarray, r: int) -> np.ndarray:
    """The projection onto r random directions on either side, of their own for each layer."""
    # QR of a thin Gaussian matrix spans what the first r singular vectors of a whole one would.
    layers, inputs, outputs = matrices.shape
    u, v = (
        np.linalg.qr(np.asarray(jax.random.normal(k, (layers, size, r)), np.float64))[0]
        for k, size in zip(jax.random.split(key), (inputs, outputs), strict=True)
    )
    return projected_norm(u, matrices, v)
