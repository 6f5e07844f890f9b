"""Starts of a factor pair that are not zero: both factors are taken from the weight, or from its gradient.

    pissa    W = U S V:  A_0 = U_r sqrt(S_r / scale),  B_0 = sqrt(S_r / scale) V_r
    olora    W^T = Q R:  A_0 = (R_r)^T,  B_0 = (Q_r)^T
    lora_ga  G = U S V:  A_0 = k U_{1..r},  B_0 = k V_{r+1..2r},  k = outputs^(1/4) / sqrt(gamma)

PiSSA: Meng et al. 2024, arXiv 2404.02948. OLoRA: 2406.01775. LoRA-GA: Wang et al. 2024, 2407.05000.

W is (inputs, outputs) here, and G its gradient. The update is scale * (A B - A_0 B_0), see `pairs`.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from lora_jax import threefry
from lora_jax.errors import InputError
from lora_jax.low_rank import contraction
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.sharding.layout import automatically

if TYPE_CHECKING:
    from lora_jax.low_rank.weights import WeightView

OF_WEIGHT = ("pissa", "olora")
_OVERSAMPLED = 10  # directions beside the wanted ones in an approximate decomposition


def of_weight(
    weight: WeightView, settings: LoRASettings, path: str
) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """The start that a weight gives, in the shapes of its factors.

    Args:
      weight: pre-trained; of a packed one its numbers.
      settings: with `init`, one of OF_WEIGHT.
      path: of the layer, for messages.

    Raises:
      ValueError: PiSSA's factors would have columns of zeros, which never train.
    """
    roles, rank = weight.roles, settings.rank
    shape_a, shape_b = contraction.factor_shapes(roles, weight.shape, rank)
    if weight.layer.is_abstract():  # then the shapes are all that is asked for
        return jnp.zeros(shape_a), jnp.zeros(shape_b)

    def start(matrix: Float[Array, "inputs outputs"]) -> tuple[Array, Array]:
        if settings.init == "olora":
            return olora(matrix, rank)
        return pissa(matrix, rank, settings.scale, settings.svd_iterations)

    def factors(values: Float[Array, ...]) -> tuple[Array, Array]:
        # one after the other: only one is decomposed at a time
        a, b = jax.lax.map(start, roles.to_matrices(values))
        return a.reshape(shape_a), b.reshape(shape_b)

    a, b = automatically(factors, shardings_of_factors(weight), weight.values())
    if settings.init == "pissa" and not isinstance(a, jax.core.Tracer) and a.is_fully_addressable:
        batch, columns = len(roles.batch), np.asarray(a)
        inputs = tuple(range(batch, columns.ndim - 1))
        smallest = np.min(np.sum(columns * columns, axis=inputs))
        if not bool(smallest > 0):
            raise InputError(
                f"the weight of {path or 'the layer'} has a rank below {rank} (it may be zero), so factors "
                f"of its principal part would be zero and never train; exclude={path!r}, or give this layer "
                "init='kaiming'"
            )
    return a, b


def shardings_of_factors(weight: WeightView) -> tuple[NamedSharding | None, NamedSharding | None]:
    """How both factors of a weight are split over a mesh: as its axes are."""
    roles, layout = weight.roles, weight.layout
    of_a = layout.of_axes((*roles.batch, *roles.inputs, None))
    return of_a, layout.of_axes((*roles.batch, None, *roles.outputs))


def pissa(
    matrix: Float[Array, "inputs outputs"], rank: int, scale: float, iterations: int = 0
) -> tuple[Float[Array, "inputs rank"], Float[Array, "rank outputs"]]:
    """Factors of the principal part of a weight: scale * A B is the nearest matrix of this rank.

    Args:
      matrix: the weight.
      rank: of the factors.
      scale: in front of their product.
      iterations: of a randomised decomposition (Halko et al. 2011); 0: the exact one.
    """
    u, s, v = _decomposed(matrix, rank, iterations)
    root = jnp.sqrt(s / scale)
    return u * root, root[:, None] * v


def olora(
    matrix: Float[Array, "inputs outputs"], rank: int
) -> tuple[Float[Array, "inputs rank"], Float[Array, "rank outputs"]]:
    """Factors from the orthonormal decomposition of a weight."""
    q, r = jnp.linalg.qr(matrix.T)
    return r[:rank].T, q[:, :rank].T


def lora_ga(
    gradient: Float[Array, "inputs outputs"], rank: int, gamma: float
) -> tuple[Float[Array, "inputs rank"], Float[Array, "rank outputs"]]:
    """Factors whose first step is nearest to that of full fine-tuning (theorem 3.1 of that paper).

    A has the first `rank` left singular vectors of the gradient and B the next right ones, so both are
    orthonormal up to their size; the matrix has at least twice the rank.
    """
    u, _, v = jnp.linalg.svd(gradient, full_matrices=False)
    size = gradient.shape[1] ** 0.25 / math.sqrt(gamma)
    return size * u[:, :rank], size * v[rank : 2 * rank]


def seeded(seed: int, path: str, shape: Shape, settings: LoRASettings, fan_in: int) -> Array:
    """The A of a layer that is drawn from a seed in its settings: `kaiming` or `gaussian`, see there.

    Whatever JAX's settings for random numbers are, since no folder holds it.

    Args:
      seed: of the settings.
      path: of the layer.
      shape: of A.
      settings: with `init` and `std`.
      fan_in: contracted size of one map.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    words = threefry.words(jax.random.fold_in(key, zlib.crc32(path.encode())), shape)
    # Within (0, 1).
    uniform: Array = ((words >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-24)
    if settings.init == "gaussian":
        normal: Array = settings.std * jax.scipy.special.ndtri(uniform)
        return normal
    kaiming: Array = (2 * uniform - 1) / math.sqrt(fan_in)
    return kaiming


def _decomposed(
    matrix: Float[Array, "inputs outputs"], rank: int, iterations: int
) -> tuple[Float[Array, "inputs rank"], Float[Array, " rank"], Float[Array, "rank outputs"]]:
    """The largest singular values of a matrix and their vectors."""
    if not iterations:
        u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    width = min(rank + _OVERSAMPLED, *matrix.shape)
    found = matrix @ jax.random.normal(jax.random.key(0), (matrix.shape[1], width))

    def sharper(step: Any, found: Array) -> Array:
        other, _ = jnp.linalg.qr(matrix.T @ jnp.linalg.qr(found)[0])
        return matrix @ other

    found = jax.lax.fori_loop(0, iterations, sharper, found)
    basis, _ = jnp.linalg.qr(found)
    u, s, v = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], v[:rank]
