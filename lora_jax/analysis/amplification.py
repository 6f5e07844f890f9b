"""What an update amplifies: the projections U^T W V^T of section 7.3 and appendix H.4 (Table 7).

With U and V the singular vectors of an update, ||U^T W V^T||_F is how much of the pre-trained weight
W lies in the update's directions, and ||Delta W||_F over it is the amplification factor. The update
here is the effective one, (alpha/r) B A, with which the factor grows in proportion; the paper does not
say which it took.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.analysis.spectra import delta_svd

_HIGHEST = jax.lax.Precision.HIGHEST


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

    in_delta: Float[Array, " layers"]
    in_weight: Float[Array, " layers"]
    in_random: Float[Array, " layers"]
    in_random_expected: Float[Array, " layers"]
    delta_norm: Float[Array, " layers"]
    weight_norm: Float[Array, " layers"]
    factor: Float[Array, " layers"]


@jax.jit
def projected_norm(
    u: Float[Array, "*layers inputs r"],
    matrix: Float[Array, "*layers inputs outputs"],
    v: Float[Array, "*layers outputs r"],
) -> Float[Array, "*layers"]:
    """||U^T W V||_F for orthonormal columns U and V.

    The paper's W is the transpose of ours, and its V has the vectors as rows; the norm is the same.
    """
    core = jnp.einsum("...di,...de,...ej->...ij", u, matrix, v, precision=_HIGHEST)
    return jnp.sqrt((core**2).sum(axis=(-1, -2)))


def amplification(
    pair: FactorPair,
    matrices: Float[Array, "layers inputs outputs"],
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
    return _figures(u[..., :r], values, v[..., :r], matrices, key, draws)


@partial(jax.jit, static_argnames="draws")
def _figures(
    u: Array, values: Array, v: Array, matrices: Array, key: Array, draws: int
) -> Amplification:
    _, inputs, outputs = matrices.shape
    r = u.shape[-1]
    own = jnp.linalg.svd(matrices, compute_uv=False)
    drawn = jax.lax.map(lambda k: _random(k, matrices, r), jax.random.split(key, draws))
    inside = projected_norm(u, matrices, v)
    delta_norm = jnp.sqrt((values**2).sum(axis=-1))
    weight_norm = jnp.sqrt((own**2).sum(axis=-1))
    return Amplification(
        in_delta=inside,
        in_weight=jnp.sqrt((own[..., :r] ** 2).sum(axis=-1)),
        in_random=jnp.sqrt(jnp.mean(drawn**2, axis=0)),
        in_random_expected=weight_norm * r / jnp.sqrt(float(inputs * outputs)),
        delta_norm=delta_norm,
        weight_norm=weight_norm,
        factor=delta_norm / inside,
    )


def _random(key: Key[Array, ""], matrices: Float[Array, "layers inputs outputs"], r: int) -> Array:
    """The projection onto r random directions on either side, of their own for each layer."""
    # QR of a thin Gaussian matrix spans what the first r singular vectors of a whole one would.
    layers, inputs, outputs = matrices.shape
    keys = jax.random.split(key)
    u, v = (
        jnp.linalg.qr(jax.random.normal(k, (layers, size, r)))[0]
        for k, size in zip(keys, (inputs, outputs), strict=True)
    )
    return projected_norm(u, matrices, v)
