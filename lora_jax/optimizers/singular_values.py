"""What AdaLoRA computes from updates W + scale * A diag(e) B: orthogonality, importance, the best ones.

Leaves are by path: PLACE/a (*maps, *inputs, rank), PLACE/e (*maps, rank) and PLACE/b (*maps, rank,
*outputs), where maps are the layers of a stack and other independent maps of one weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lora_jax.optimizers.leaves import Leaves
from lora_jax.sharding.layout import automatically, sharding_of

SIDES = ("a", "e", "b")


def orthogonality(leaves: Mapping[str, Array], places: Sequence[str]) -> Float[Array, ""]:
    """The regulariser of section 3.1: ||A^T A - I|| and ||B B^T - I||, mean over all factors.

    As in PEFT the Frobenius norms are not squared. Each layer of a stack has factors of its own.

    Args:
      leaves: of the updates.
      places: paths of the updates.
    """
    total = sum((jnp.sum(_norms(*_factors(leaves, place))) for place in places), jnp.float32(0))
    return total / _count(leaves, places)


def gradients_of_orthogonality(
    leaves: Mapping[str, Array], places: Sequence[str], weight: float
) -> Leaves:
    """The gradient of weight * `orthogonality`, of every a and b."""
    share = weight / _count(leaves, places)
    found: Leaves = {}
    for place in places:
        a, b, maps = _factors(leaves, place)

        def gradient(a: Array, b: Array, maps: int = maps) -> tuple[Array, Array]:
            value = lambda a, b: share * jnp.sum(_norms(a, b, maps))  # noqa: E731
            of_a, of_b = jax.grad(value, argnums=(0, 1))(a, b)
            return of_a, of_b

        of_a, of_b = automatically(gradient, (sharding_of(a), sharding_of(b)), a, b)
        found |= {f"{place}/a": of_a, f"{place}/b": of_b}
    return found


def smoothed(
    sensitivity: Leaves, uncertainty: Leaves, sizes: Leaves, beta1: float, beta2: float
) -> tuple[Leaves, Leaves]:
    """Both of section 3.2 after another update (equations 9 and 10).

    Args:
      sensitivity: before it, of every leaf.
      uncertainty: the same.
      sizes: |parameter * gradient| at this update.
      beta1: smoothing of the sensitivity.
      beta2: smoothing of the uncertainty.
    """
    sizes = {path: size.astype(jnp.float32) for path, size in sizes.items()}
    new = {path: beta1 * sensitivity[path] + (1 - beta1) * sizes[path] for path in sizes}
    doubt = {
        path: beta2 * uncertainty[path] + (1 - beta2) * jnp.abs(sizes[path] - new[path])
        for path in sizes
    }
    return new, doubt


def best(
    sensitivity: Leaves, uncertainty: Leaves, places: Sequence[str], dropped: Int[Array, ""]
) -> dict[str, Bool[Array, ...]]:
    """Which singular values of every e are kept, if of all layers together so many are dropped.

    All that are not above the last dropped one in importance are dropped too, as in PEFT.
    """
    scores = [importance(sensitivity, uncertainty, place) for place in places]

    def choose(*scores: Array) -> tuple[Array, ...]:
        ranked = jnp.sort(jnp.concatenate([score.reshape(-1) for score in scores]))
        last = ranked[jnp.maximum(dropped - 1, 0)]
        return tuple((score > last) | (dropped == 0) for score in scores)

    shardings = tuple(sharding_of(sensitivity[f"{place}/e"]) for place in places)
    kept = automatically(choose, shardings, *scores)
    return {f"{place}/e": keeps for place, keeps in zip(places, kept, strict=True)}


def importance(
    sensitivity: Mapping[str, Array], uncertainty: Mapping[str, Array], place: str
) -> Float[Array, ...]:
    """Of every singular value of an update, in the shape of e (equations 7 and 11).

    A single value's is sensitivity * uncertainty; that of e counts with the mean of those of its column of
    A and the mean of those of its row of B.
    """
    a, e, b = (sensitivity[path] * uncertainty[path] for path in (f"{place}/{s}" for s in SIDES))
    maps = e.ndim - 1

    def total(a: Array, e: Array, b: Array) -> Array:
        of_a = jnp.mean(a, axis=tuple(range(maps, a.ndim - 1)))
        return e + (of_a + jnp.mean(b, axis=tuple(range(maps + 1, b.ndim))))

    return automatically(total, sharding_of(sensitivity[f"{place}/e"]), a, e, b)


def _factors(leaves: Mapping[str, Array], place: str) -> tuple[Array, Array, int]:
    """A, B, and their number of axes of maps."""
    return leaves[f"{place}/a"], leaves[f"{place}/b"], leaves[f"{place}/e"].ndim - 1


def _count(leaves: Mapping[str, Array], places: Sequence[str]) -> int:
    """Factors of all updates, each map's on its own."""
    return sum(2 * math.prod(leaves[f"{place}/e"].shape[:-1]) for place in places)


def _norms(a: Array, b: Array, maps: int) -> Float[Array, "2 maps"]:
    """||A^T A - I|| and ||B B^T - I|| of every map."""
    rank, count = a.shape[-1], math.prod(a.shape[:maps])
    columns = a.astype(jnp.float32).reshape(count, -1, rank)
    rows = b.astype(jnp.float32).reshape(count, rank, -1)
    exact = jax.lax.Precision.HIGHEST
    of_a = jnp.einsum("mir,mis->mrs", columns, columns, precision=exact)
    of_b = jnp.einsum("mro,mso->mrs", rows, rows, precision=exact)
    squared = jnp.sum((jnp.stack([of_a, of_b]) - jnp.eye(rank)) ** 2, axis=(-2, -1))
    positive = squared > 0  # the root has no derivative at 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)
