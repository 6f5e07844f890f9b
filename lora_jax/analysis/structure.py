"""The structure of an update: its spectrum, ranks and size, and the intruder dimensions that it makes.

Intruder dimensions (Shuttleworth et al. 2024, arXiv 2410.21228, section 3): high-ranking singular vectors
of the tuned weight that are like none of the pre-trained weight's. They report that LoRA makes them, full
fine-tuning does not, and that what a model forgets goes with them.

Their W is (outputs, inputs) and its left singular vectors lie in the output space: the right singular
vectors of our (inputs, outputs). `side="outputs"` is theirs and the default. numpy computes all
decompositions in float64 on the host, as in `similarity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from scipy import linalg

from lora_jax.analysis import spectra
from lora_jax.analysis.changes import Change, Factors, changes
from lora_jax.analysis.similarity import Matrix
from lora_jax.checks import integer, one_of
from lora_jax.errors import InputError
from lora_jax.ranges import Number, check

Side = Literal["outputs", "inputs"]
Directions = dict[str, Float[np.ndarray, "maps d k"]]
TOP, EPSILON = 10, 0.5  # k and epsilon of intruder dimensions
_SMALLEST = 1e-4  # of the largest singular value: squared it is far above float64's rounding


class Structure(NamedTuple):
    """The numbers of one kind of weight, one value for every map (layer, expert, group).

    A zero update has rank 0, and its effective and stable ranks are not defined: NaN.

    Attributes:
      values: singular values of the update, the largest first.
      rank: numerical rank, see `numerical_rank`.
      effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007).
      stable_rank: ||update||_F^2 / ||update||_2^2.
      norm: ||update||_F.
      relative: the same divided by ||W_0||_F.
      cosines: for each of the top singular vectors of the tuned weight the largest |cosine| to a singular
        vector of W_0.
      intruders: how many of these are below epsilon.
    """

    values: Float[np.ndarray, "maps n"]
    rank: Int[np.ndarray, " maps"]
    effective_rank: Float[np.ndarray, " maps"]
    stable_rank: Float[np.ndarray, " maps"]
    norm: Float[np.ndarray, " maps"]
    relative: Float[np.ndarray, " maps"]
    cosines: Float[np.ndarray, "maps top"]
    intruders: Int[np.ndarray, " maps"]


def singular_values(
    update: Float[Matrix, "maps inputs outputs"], factors: Factors | None = None
) -> Float[np.ndarray, "maps n"]:
    """The singular values of updates, the largest first; of a product of thin factors from these alone.

    Args:
      update: the matrices.
      factors: whose product they are, if they are one; n is their rank where that is the smallest side.
    """
    if factors is None or factors[0].shape[-1] >= min(update.shape[-2:]):
        values: np.ndarray = np.linalg.svd(np.asarray(update, np.float64), compute_uv=False)
        return values
    a, b = factors
    left = np.linalg.qr(np.asarray(a, np.float64), mode="r")
    right = np.linalg.qr(np.swapaxes(np.asarray(b, np.float64), -1, -2), mode="r")
    small: np.ndarray = np.linalg.svd(left @ np.swapaxes(right, -1, -2), compute_uv=False)
    return small


def numerical_rank(
    values: Float[Matrix, "maps n"],
    shape: tuple[int, int],
    noise: Float[Matrix, " maps"] | float = 0.0,
) -> Int[np.ndarray, " maps"]:
    """How many singular values are not rounding: above the larger side times float64's epsilon, and noise.

    Args:
      values: of the updates, the largest first.
      shape: (inputs, outputs) of the matrices.
      noise: the largest singular value that rounding of the weights may have made, see `Change`.
    """
    values = np.asarray(values, np.float64)
    relative = values[..., :1] * max(shape) * np.finfo(np.float64).eps
    limit = np.maximum(relative, np.broadcast_to(noise, values.shape[:1])[:, None])
    above: np.ndarray = np.sum(values > limit, axis=-1)
    return above


def directions(
    weights: Float[Matrix, "maps inputs outputs"], side: Side = "outputs"
) -> Float[np.ndarray, "maps d k"]:
    """The singular vectors of weights on one side as columns, largest singular value first, k = min of both.

    Raises:
      ValueError: another side.
    """
    one_of("side", side, get_args(Side))
    u, _, vt = np.linalg.svd(np.asarray(weights, np.float64), full_matrices=False)
    chosen: np.ndarray = u if side == "inputs" else np.swapaxes(vt, -1, -2)
    return chosen


def top_directions(
    weights: Float[Matrix, "maps inputs outputs"], k: int, side: Side = "outputs"
) -> Float[np.ndarray, "maps d top"]:
    """The first k of `directions`, up to signs, in a fraction of the time.

    They are eigenvectors of the smaller Gram matrix, whose eigenvalues are squared singular values; where
    the k-th of these is too small for that, all are computed.
    """
    one_of("side", side, get_args(Side))
    matrices = np.asarray(weights, np.float64)
    if side == "inputs":
        matrices = np.swapaxes(matrices, -1, -2)
    others, size = matrices.shape[-2:]
    least = min(others, size)
    k, found = min(k, least), []
    for matrix in matrices:
        gram = matrix.T @ matrix if size <= others else matrix @ matrix.T
        squares, vectors = linalg.eigh(gram, subset_by_index=[least - k, least - 1])
        if not squares[0] > _SMALLEST**2 * squares[-1]:
            return directions(weights, side)[..., :k]
        if size > others:
            vectors = matrix.T @ vectors / np.sqrt(squares)
        found.append(vectors[:, ::-1])
    return np.stack(found)


def largest_cosines(
    before: Float[Matrix, "maps inputs outputs"],
    after: Float[Matrix, "maps inputs outputs"],
    *,
    k: int = TOP,
    side: Side = "outputs",
    known: Float[Matrix, "maps d n"] | None = None,
) -> Float[np.ndarray, "maps top"]:
    """For each of the first k singular vectors of tuned weights how near a pre-trained one is.

    The vectors of W_0 are those of its min(inputs, outputs) singular values: what lies outside their span
    is like none of them.

    Args:
      before: W_0.
      after: the tuned weights.
      k: number of vectors of each tuned weight; at most as many as it has.
      side: on which the vectors lie; "outputs" is the paper's.
      known: the directions of W_0 on that side, where they were computed before.

    Returns:
      The largest |cosine| to any singular vector of W_0, in [0, 1] up to rounding.

    Raises:
      ValueError: k is no positive integer, or the shapes differ.
    """
    k = integer("k", k)
    if before.shape != after.shape:
        raise InputError(
            f"the weights before have shape {before.shape} and those after {after.shape}; give those of one "
            "layer"
        )
    u = directions(before, side) if known is None else np.asarray(known, np.float64)
    top = top_directions(after, k, side)
    nearest: np.ndarray = np.abs(np.swapaxes(u, -1, -2) @ top).max(axis=-2)
    return nearest


def intruders(
    before: Float[Matrix, "maps inputs outputs"],
    after: Float[Matrix, "maps inputs outputs"],
    *,
    k: int = TOP,
    epsilon: float = EPSILON,
    side: Side = "outputs",
) -> Int[np.ndarray, " maps"]:
    """The number of intruder dimensions among the first k singular vectors of every tuned weight.

    Args:
      before, after, k, side: as of `largest_cosines`.
      epsilon: a vector whose largest |cosine| is below it is an intruder.

    Raises:
      ValueError: an argument is out of range.
    """
    epsilon = _epsilon(epsilon)
    below: np.ndarray = np.sum(largest_cosines(before, after, k=k, side=side) < epsilon, axis=-1)
    return below


def _epsilon(epsilon: float) -> float:
    return float(check("epsilon", epsilon, Number(above=0, most=1)))


def of_change(
    change: Change,
    *,
    k: int = TOP,
    epsilon: float = EPSILON,
    side: Side = "outputs",
    known: Float[Matrix, "maps d n"] | None = None,
) -> Structure:
    """The structure of one kind of weight.

    Args:
      change: from `changes`, or made of arrays.
      k, side, known: as of `largest_cosines`.
      epsilon: as of `intruders`.

    Raises:
      ValueError: an argument is out of range.
    """
    epsilon = _epsilon(epsilon)
    values = singular_values(change.update, change.factors)
    cosines = largest_cosines(
        change.before, change.before + change.update, k=k, side=side, known=known
    )
    norm = np.linalg.norm(values, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a weight of zeros
        relative = norm / np.linalg.norm(change.before, axis=(-2, -1))
    shape = change.update.shape[-2], change.update.shape[-1]
    return Structure(
        values=values,
        rank=numerical_rank(values, shape, change.noise),
        effective_rank=spectra.entropy_rank(values),
        stable_rank=spectra.stable_rank(values),
        norm=norm,
        relative=relative,
        cosines=cosines,
        intruders=np.sum(cosines < epsilon, axis=-1),
    )


def of_model(
    model: nnx.Module,
    base: nnx.Module,
    *,
    head: str | None = None,
    k: int = TOP,
    epsilon: float = EPSILON,
    side: Side = "outputs",
    known: Directions | None = None,
) -> dict[str, Structure]:
    """The structure of every weight matrix that a model changed, by path of its layer (and part).

    Args:
      model: adapted, merged, or tuned as a whole.
      base: the model before.
      head: regular expression for leaves that are not of the base, see `changes`.
      k, epsilon, side: as of `intruders`.
      known: filled with the directions of the base's weights; given again for another model of the same
        base and side, they are not computed again.

    Returns:
      {} where no weight matrix changed.

    Raises:
      ValueError: an argument is out of range, or the base is another one.
    """
    found = {}
    for change in changes(model, base, head):
        basis = None
        if known is not None:
            if change.path not in known:
                known[change.path] = directions(change.before, side)
            basis = known[change.path]
        found[change.path] = of_change(change, k=k, epsilon=epsilon, side=side, known=basis)
    return found


def total_intruders(structures: Mapping[str, Structure]) -> int:
    """The intruder dimensions of a whole model."""
    return int(sum(one.intruders.sum() for one in structures.values()))
