"""Gradients of a factor pair that are corrected on their way back, so that a step of the factors is nearer to
one of the weight itself. In the forward pass the factors are what they are.

With s the scale, A (inputs, rank), B (rank, outputs) and their gradients G_A, G_B:

    lora_fa   A is frozen;  G_B <- (A^T A)^-1 G_B / s^2    (Zhang et al. 2023, 2308.03303, as in PEFT)
    lora_pro  G_A <- G_A (B B^T)^-1 / s^2 + A X^T
              G_B <- (A^T A)^-1 G_B (I - B^T (B B^T)^-1 B) / s^2 - X^T B
              (B B^T) X + X (A^T A) = -(B B^T)^-1 G_A^T A / s^2
              (Wang et al. 2024, 2407.18242, theorems 2.1 and 2.3)

Both are linear in the gradients, so sums over micro-batches and devices may come before or after. Clipping
and Adam come after.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lora_jax.low_rank.contraction import Contraction, as_matrices
from lora_jax.low_rank.settings import Gradient
from lora_jax.sharding.layout import automatically, sharding_of

_DAMPING = 1e-8  # of the inverses, as both have it; in float32 it vanishes beside larger matrices


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 4))
def corrected(
    rule: Gradient, roles: Contraction, a: Float[Array, ...], b: Float[Array, ...], scale: float
) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """Both factors as they are, whose gradients will be corrected.

    There is no forward mode (`jax.jvp`): a correction of gradients is the derivative of no function.

    Args:
      rule: of the correction.
      roles: the axes of the weight.
      a: (*batch, *inputs, rank).
      b: (*batch, rank, *outputs).
      scale: in front of their product.
    """
    return a, b


def _forward(
    rule: Gradient, roles: Contraction, a: Array, b: Array, scale: float
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    return (a, b), (a, b)


def _backward(
    rule: Gradient,
    roles: Contraction,
    scale: float,
    kept: tuple[Array, Array],
    gradients: tuple[Array, Array],
) -> tuple[Array, Array]:
    def correct(a: Array, b: Array, of_a: Array, of_b: Array) -> tuple[Array, Array]:
        pairs = ((a, b), (of_a, of_b))
        matrices = (_precise(m) for pair in pairs for m in as_matrices(roles, *pair))
        function = _lora_fa if rule == "lora_fa" else lora_pro
        new_a, new_b = jax.vmap(functools.partial(function, scale=scale))(*matrices)
        return new_a.reshape(a.shape).astype(a.dtype), new_b.reshape(b.shape).astype(b.dtype)

    a, b = kept
    return automatically(correct, (sharding_of(a), sharding_of(b)), a, b, *gradients)


_backward.of_identity = True  # type: ignore[attr-defined]  # FLOPs are counted as without it
corrected.defvjp(_forward, _backward)


def _precise(values: Array | np.ndarray) -> Array:
    """In float32, or float64 if they are: decompositions have no smaller type."""
    array = jnp.asarray(values)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _lora_fa(a: Array, b: Array, of_a: Array, of_b: Array, *, scale: float) -> tuple[Array, Array]:
    return of_a, lora_fa(a, of_b, scale)


def lora_fa(
    a: Float[Array, "inputs rank"], of_b: Float[Array, "rank outputs"], scale: float
) -> Float[Array, "rank outputs"]:
    """The gradient of B whose step changes A B most nearly as a step of the weight would."""
    return _inverse(_product(a.T, a)) @ of_b / scale**2


def lora_pro(
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
    of_a: Float[Array, "inputs rank"],
    of_b: Float[Array, "rank outputs"],
    *,
    scale: float,
) -> tuple[Float[Array, "inputs rank"], Float[Array, "rank outputs"]]:
    """The gradients of both factors whose step changes A B most nearly as a step of the weight would."""
    gram_a, gram_b = _product(a.T, a), _product(b, b.T)
    inverse_a, inverse_b = _inverse(gram_a), _inverse(gram_b)
    of_a = _product(of_a, inverse_b) / scale**2
    x = _sylvester(gram_b, gram_a, -_product(of_a.T, a))
    within = _product(_product(of_b, b.T), _product(inverse_b, b))
    of_b = _product(inverse_a, of_b - within) / scale**2
    return of_a + _product(a, x.T), of_b - _product(x.T, b)


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _inverse(gram: Float[Array, "rank rank"]) -> Float[Array, "rank rank"]:
    """The inverse; relative to the size of the matrix damped, for factors whose columns are dependent."""
    size = jnp.trace(gram) / len(gram)
    relative = 10 * jnp.finfo(gram.dtype).eps
    damped = gram + (_DAMPING + relative * size) * jnp.eye(len(gram), dtype=gram.dtype)
    inverse: Array = jnp.linalg.inv(damped)
    return inverse


def _sylvester(
    left: Float[Array, "rank rank"],
    right: Float[Array, "rank rank"],
    constant: Float[Array, "rank rank"],
) -> Float[Array, "rank rank"]:
    """X with left X + X right = constant, for symmetric positive semidefinite matrices."""
    values_l, vectors_l = jnp.linalg.eigh(left)
    values_r, vectors_r = jnp.linalg.eigh(right)
    turned = _product(_product(vectors_l.T, constant), vectors_r)
    sums = values_l[:, None] + values_r[None, :]
    solved = turned / jnp.where(sums > 0, sums, 1)
    return _product(_product(vectors_l, solved), vectors_r.T)
