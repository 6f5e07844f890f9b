"""How several tensors of one shape become one: the definitions of PEFT (`peft.utils.merge_utils`).

Task arithmetic (Ilharco et al. 2023) is the weighted sum. Trimming keeps the largest magnitudes. TIES (Yadav
et al. 2023) trims, elects a sign for every value, and averages those that have it. DARE (Yu et al. 2024)
drops values at random and divides the others by the share that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float

Tensors = Float[np.ndarray, "adapters rows columns"]
Tensor = Float[np.ndarray, "rows columns"]
Weights = Float[np.ndarray, " adapters"]
SIGNS = ("total", "frequency")


def weighted_sum(tensors: Tensors, weights: Weights) -> Tensor:
    """Task arithmetic; a negative weight takes a task out."""
    total: Tensor = np.einsum("n,nij->ij", weights, tensors)
    return total


def trimmed(tensors: Tensors, density: float) -> Tensors:
    """Each tensor with its largest magnitudes only, a share `density` of its values; the others are 0."""
    flat = tensors.reshape(len(tensors), -1)
    count = int(density * flat.shape[1])
    if density >= 1:
        return tensors
    if count == 0:
        return np.zeros_like(tensors)
    largest = np.argpartition(-np.abs(flat), count - 1, axis=1)[:, :count]
    result = np.zeros_like(flat)
    np.put_along_axis(result, largest, np.take_along_axis(flat, largest, 1), 1)
    return result.reshape(tensors.shape)


def dropped(tensors: Tensors, density: float, random: np.random.Generator) -> Tensors:
    """DARE: a share `density` of the values, drawn one by one, divided by that share."""
    if density >= 1:
        return tensors
    kept: Tensors = tensors * (random.random(tensors.shape) < density) / density
    return kept


def elected(tensors: Tensors, signs: str) -> Bool[np.ndarray, "adapters rows columns"]:
    """Which values have the sign of the majority: of the sum of all (`total`), or of most (`frequency`)."""
    own = np.sign(tensors)
    vote = tensors.sum(0) if signs == "total" else own.sum(0)
    agree: Bool[np.ndarray, ...] = own == np.where(vote >= 0, 1, -1)
    return agree


def disjoint_mean(tensors: Tensors, weights: Weights, chosen: Bool[np.ndarray, ...]) -> Tensor:
    """The weighted sum of the chosen values, divided by their number."""
    total = np.einsum("n,nij->ij", weights, tensors * chosen)
    mean: Tensor = total / np.maximum(chosen.sum(0), 1)
    return mean


def magnitude_prune(tensors: Tensors, weights: Weights, density: float) -> Tensor:
    """The weighted sum of trimmed tensors."""
    return weighted_sum(trimmed(tensors, density), weights)


def ties(tensors: Tensors, weights: Weights, density: float, signs: str) -> Tensor:
    """Trim, elect, average."""
    kept = trimmed(tensors, density)
    return disjoint_mean(kept, weights, elected(kept, signs))


def dare_linear(
    tensors: Tensors, weights: Weights, density: float, random: np.random.Generator
) -> Tensor:
    """The weighted sum of what is kept."""
    return weighted_sum(dropped(tensors, density, random), weights)


def dare_ties(
    tensors: Tensors, weights: Weights, density: float, signs: str, random: np.random.Generator
) -> Tensor:
    """Drop at random, elect, average."""
    kept = dropped(tensors, density, random)
    return disjoint_mean(kept, weights, elected(kept, signs))


Rule = Callable[[Tensors, Weights], Tensor]


def rules(density: float, signs: str, random: np.random.Generator) -> Mapping[str, Rule]:
    """The rules by name, with these settings."""
    return {
        "linear": weighted_sum,
        "magnitude_prune": lambda t, w: magnitude_prune(t, w, density),
        "ties": lambda t, w: ties(t, w, density, signs),
        "dare_linear": lambda t, w: dare_linear(t, w, density, random),
        "dare_ties": lambda t, w: dare_ties(t, w, density, signs, random),
    }
