"""How much two subspaces overlap: phi of the paper's equation 4, and the overlap by chance alone.

All functions work on stacks of matrices: leading axes are layers. Directions are columns, the one
with the largest singular value first. Where singular values are equal, the single directions are
arbitrary, and so is phi at the i that divides them.

numpy computes the decompositions in float64 on the host: one matrix per layer is little work, and
programs with several batched decompositions were seen to hang on a CPU of two cores (jaxlib 0.10.2).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Key

Matrix = Array | np.ndarray


def directions(matrix: Float[Matrix, "*layers d n"]) -> Float[np.ndarray, "*layers d k"]:
    """The left-singular vectors as columns, k = min(d, n) of them, largest singular value first.

    For a factor `a` (layers, inputs, rank) these are the right-singular vectors of the paper's A
    (section 7.2); for a base matrix (layers, inputs, outputs) those of the paper's W.
    """
    return np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)[0]


def overlap(
    first: Float[Matrix, "*layers d m"], second: Float[Matrix, "*layers d n"]
) -> Float[np.ndarray, "*layers m n"]:
    """phi between the spans of the first i and the first j columns, for every i and j at once.

    Entry [i-1, j-1] is ||U_i^T V_j||_F^2 / min(i, j): 1 where one subspace contains the other, 0 where
    they are orthogonal.

    Args:
      first: directions U as orthonormal columns, such as `directions` returns.
      second: directions V in the same space.
    """
    u, v = np.asarray(first, np.float64), np.asarray(second, np.float64)
    cosines = np.swapaxes(u, -1, -2) @ v
    sums = np.cumsum(np.cumsum(cosines**2, axis=-2), axis=-1)
    normalised: np.ndarray = sums / _over_ranks(np.minimum, *sums.shape[-2:])
    return normalised


def phi(
    first: Float[Matrix, "*layers d p"], second: Float[Matrix, "*layers d q"]
) -> Float[np.ndarray, "*layers m n"]:
    """Normalised subspace similarity of two matrices for all i and j (equation 4, appendix G).

    Args:
      first: a factor `a`, or any matrix whose columns lie in the space to compare.
      second: another matrix whose columns lie in that space; their number may differ.

    Returns:
      phi at [layer, i-1, j-1], in [0, 1] up to rounding, for i up to m = min(d, p) and j up to
      n = min(d, q). The scale of a matrix does not matter.
    """
    return overlap(directions(first), directions(second))


def random_mean(d: int, m: int, n: int) -> Float[np.ndarray, "m n"]:
    """The mean of phi between independent random subspaces of R^d: max(i, j) / d.

    It is 0.005 at the paper's d = 12,288 and j = 64, but 0.17 at d = 384.
    """
    mean: np.ndarray = _over_ranks(np.maximum, m, n) / d
    return mean


def random_deviation(d: int, m: int, n: int) -> Float[np.ndarray, "m n"]:
    """The standard deviation of phi between independent random subspaces of R^d.

    The trace of the product of two projections of ranks i and j, one of them random, has the variance
    2 i j (d-i) (d-j) / (d^2 (d-1) (d+2)); phi is that trace divided by min(i, j).
    """
    i, j = np.arange(1.0, m + 1)[:, None], np.arange(1.0, n + 1)
    variance = 2 * i * j * (d - i) * (d - j) / (float(d) ** 2 * (d - 1) * (d + 2))
    deviation: np.ndarray = np.sqrt(variance) / np.minimum(i, j)
    return deviation


def gaussian_control(
    key: Key[Array, ""], d: int, m: int, n: int, layers: int = 1
) -> Float[np.ndarray, "layers m n"]:
    """phi between pairs of Gaussian matrices (the right panel of Figure 4), one pair per layer.

    Args:
      key: random key of the matrices.
      d: dimension of the space.
      m: number of columns of the first matrix of each pair, at most d.
      n: number of columns of the second one, at most d.
      layers: number of pairs.
    """
    keys = jax.random.split(key)
    first, second = (
        jax.random.normal(k, (layers, d, size)) for k, size in zip(keys, (m, n), strict=True)
    )
    return phi(first, second)


def squared_distance(
    similarity: Float[Matrix, "*layers m n"],
) -> Float[np.ndarray, "*layers m n"]:
    """The squared projection metric d^2 = p - sum of squared cosines, p = min(i, j), from phi.

    So phi = 1 - d^2 / p. The paper's appendix G prints (1 - d^2) / p, which can be negative.
    """
    ranks = _over_ranks(np.minimum, *similarity.shape[-2:])
    squared: np.ndarray = (1 - np.asarray(similarity)) * ranks
    return squared


def _over_ranks(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], m: int, n: int
) -> Float[np.ndarray, "m n"]:
    """Values of function(i, j) for i = 1..m and j = 1..n."""
    return function(np.arange(1.0, m + 1)[:, None], np.arange(1.0, n + 1))
