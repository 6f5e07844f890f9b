"""How far a combined adapter is from the exact weighted sum of the updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lora_jax.adapter_files import Adapter
from lora_jax.combination.pairs import pairs_of

_ROUNDING = 2.0**-22


def distances(
    adapters: Mapping[str, Adapter], weights: Mapping[str, float], combined: Adapter
) -> dict[str, Float[np.ndarray, " layers"]]:
    """||sum of updates - combined update|| / ||sum of updates|| (Frobenius) of every layer, by name.

    No matrix of the layer's size is formed: of all factors side by side a QR decomposition is taken.

    Args:
      adapters: that were combined, by name.
      weights: their weights by name; 1 where there is none.
      combined: the result.

    Returns:
      By path of the layer (and part); where the exact sum is zero, 0 if the other is zero too, else infinity.
    """
    found = {name: pairs_of(adapter, f"adapter {name!r}") for name, adapter in adapters.items()}
    result = {}
    for key, pair in pairs_of(combined, "the combined adapter").items():
        exact = [
            (pairs[key].a * (weights.get(name, 1.0) * pairs[key].scale), pairs[key].b)
            for name, pairs in found.items()
            if key in pairs
        ]
        own = (-pair.scale * pair.a, pair.b)
        size, far = _norm(exact), _norm([*exact, own])
        # Terms that cancel leave the rounding of float32 behind, which is no sum and no distance.
        nothing = _ROUNDING * sum((_norm([term]) for term in exact), np.zeros(1))
        size, far = (np.where(value <= nothing, 0.0, value) for value in (size, far))
        with np.errstate(divide="ignore", invalid="ignore"):
            result[key.name] = np.where(far == 0, 0.0, far / size)
    return result


def _norm(products: Sequence[tuple[np.ndarray, np.ndarray]]) -> Float[np.ndarray, " layers"]:
    """The Frobenius norm of a sum of products of factors, for every layer."""
    a = np.concatenate([np.asarray(side, np.float64) for side, _ in products], axis=-1)
    b = np.concatenate([np.asarray(side, np.float64) for _, side in products], axis=1)
    left = np.linalg.qr(a, mode="r")
    right = np.linalg.qr(np.swapaxes(b, -1, -2), mode="r")
    norms: np.ndarray = np.linalg.norm(left @ np.swapaxes(right, -1, -2), axis=(-2, -1))
    return norms
