"""The directions of an update to compare, and phi between those of two adapters or of W."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from experiments.subspace.updates import Updates
from lora_jax.analysis import factor_pairs, similarity, spectra
from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of directions that an update has.

    Attributes:
      title: what they are in the paper's words, for captions and messages.
      compute: from factors to directions as columns, the one with the largest singular value first.
    """

    title: str
    compute: Callable[[FactorPair], Float[np.ndarray, "layers d r"]]


KINDS: Mapping[str, Kind] = {  # by their name in config.directions
    "a": Kind("right-singular vectors of A", lambda pair: similarity.directions(pair.a)),
    "b": Kind(
        "left-singular vectors of B",
        lambda pair: similarity.directions(np.swapaxes(pair.b, -1, -2)),
    ),
    "delta_in": Kind(
        "right-singular vectors of the update", lambda pair: spectra.delta_svd(pair).inputs
    ),
    "delta_out": Kind(
        "left-singular vectors of the update", lambda pair: spectra.delta_svd(pair).outputs
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """phi between the directions of two adapters (Figures 3, 4, 6 and 7).

    Attributes:
      first: name of the adapter, or `NAME:WEIGHT`, whose directions i counts.
      second: name of the one whose directions j counts.
      kind: kind of the directions, a key of KINDS.
      phi: phi (layers, i, j) by weight.
      dimensions: dimension of the space that the directions lie in, by weight.
      control: phi (i, j) between two Gaussian matrices of the same sizes, by weight.
    """

    first: str
    second: str
    kind: str
    phi: Mapping[str, Float[np.ndarray, "layers i j"]]
    dimensions: Mapping[str, int]
    control: Mapping[str, Float[np.ndarray, "i j"]]

    @property
    def label(self) -> str:
        """The name of the pair in tables."""
        return f"{self.first} / {self.second}"


def compare(
    updates: Updates, first: str, second: str, *, kind: str, key: Key[Array, ""]
) -> Comparison:
    """Compares the directions of two adapters in all weights that both adapt.

    Args:
      updates: the updates to choose from.
      first: name of an adapter, or `NAME:WEIGHT`.
      second: name of another one, or of another weight.
      kind: kind of the directions, a key of KINDS.
      key: random key of the Gaussian control.

    Raises:
      ValueError: a name is unknown, the two have no weight in common, or their directions lie in spaces
        of different dimensions.
    """
    pairs, other_pairs = updates.select(first), updates.select(second)
    where, compute = f"{first} / {second}", KINDS[kind].compute
    phi, dimensions, control = {}, {}, {}
    controls: dict[tuple[int, ...], np.ndarray] = {}
    for weight in factor_pairs.shared(pairs, other_pairs, where):
        u, v = compute(pairs[weight]), compute(other_pairs[weight])
        if u.shape[-2] != v.shape[-2]:
            raise InputError(
                f"{where}: the {KINDS[kind].title} lie in spaces of {u.shape[-2]} and "
                f"{v.shape[-2]} dimensions; compare another kind (config.directions)"
            )
        phi[weight] = similarity.overlap(u, v)
        dimensions[weight] = u.shape[-2]
        shape = (u.shape[-2], u.shape[-1], v.shape[-1])
        if shape not in controls:
            controls[shape] = similarity.gaussian_control(key, *shape)[0]
        control[weight] = controls[shape]
    return Comparison(
        first=first, second=second, kind=kind, phi=phi, dimensions=dimensions, control=control
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightComparison:
    """phi between the top directions of a pre-trained W and those of an update's A (Figure 8).

    Attributes:
      adapter: name of the adapter.
      weight: name of the weight.
      phi: i counts the directions of W, j those of A.
      dimension: dimension of the space, the number of inputs.
      control: phi with a Gaussian matrix in place of A.
    """

    adapter: str
    weight: str
    phi: Float[np.ndarray, "layers i j"]
    dimension: int
    control: Float[np.ndarray, "layers i j"]


def compare_with_weight(
    adapter: str,
    weight: str,
    pair: FactorPair,
    top_directions: Float[np.ndarray, "layers inputs i"],
    key: Key[Array, ""],
) -> WeightComparison:
    """Compares an update's A with the top directions of the pre-trained weight.

    Args:
      adapter: name of the adapter.
      weight: name of the weight.
      pair: the factors.
      top_directions: directions of the pre-trained weight.
      key: random key of the Gaussian control.
    """
    gaussian = jax.random.normal(key, pair.a.shape)
    return WeightComparison(
        adapter=adapter,
        weight=weight,
        phi=similarity.overlap(top_directions, similarity.directions(pair.a)),
        dimension=top_directions.shape[-2],
        control=similarity.overlap(top_directions, similarity.directions(gaussian)),
    )


def checked_kinds(names: list[str]) -> list[str]:
    """Returns names of kinds if they are keys of KINDS.

    Raises:
      ValueError: a name is not a key of KINDS.
    """
    if unknown := [name for name in names if name not in KINDS]:
        raise InputError(f"config.directions: unknown {unknown}; known are {list(KINDS)}")
    return names
