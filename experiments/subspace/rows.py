"""The numbers of the subspace analysis as rows: one row per adapter or pair, weight and layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lora_jax.analysis import factor_pairs, similarity, spectra
from lora_jax.analysis.amplification import Amplification
from lora_jax.analysis.factor_pairs import FactorPair

Row = dict[str, Any]
Pairs = Mapping[str, FactorPair]
DIRECTIONS: Mapping[str, Callable[[FactorPair], Float[np.ndarray, "layers d r"]]] = {
    "a": lambda pair: similarity.directions(pair.a),
    "b": lambda pair: similarity.directions(np.swapaxes(pair.b, -1, -2)),
    "delta_in": lambda pair: spectra.delta_svd(pair).inputs,
    "delta_out": lambda pair: spectra.delta_svd(pair).outputs,
}
TITLES = {
    "a": "right-singular vectors of A",
    "b": "left-singular vectors of B",
    "delta_in": "right-singular vectors of the update",
    "delta_out": "left-singular vectors of the update",
}


def labels(paths: Iterable[str]) -> dict[str, str]:
    """The shortest ends of paths that tell them apart: `query`, or `first/block/attention/query`."""
    given = list(dict.fromkeys(paths))

    def end(path: str, parts: int) -> str:
        return "/".join(path.split("/")[-parts:])

    result = {}
    for path in given:
        lengths = range(1, path.count("/") + 2)
        unique = (n for n in lengths if sum(end(other, n) == end(path, n) for other in given) == 1)
        result[path] = end(path, next(unique, len(lengths)))  # or the whole path
    return result


def overlaps(first: Pairs, second: Pairs, kind: str, where: str) -> dict[str, np.ndarray]:
    """phi of two adapters by weight, (layers, i, j), between the directions of one kind."""
    result = {}
    for name in factor_pairs.shared(first, second, where):
        one, other = (DIRECTIONS[kind](pairs[name]) for pairs in (first, second))
        if one.shape[-2] != other.shape[-2]:
            raise ValueError(
                f"{where}: the {TITLES[kind]} live in spaces of {one.shape[-2]} and "
                f"{other.shape[-2]} dimensions; compare another side (config.directions)"
            )
        result[name] = similarity.overlap(one, other)
    return result


def similarity_rows(
    label: str, kind: str, maps: Mapping[str, np.ndarray], dims: Mapping[str, int]
) -> Iterator[Row]:
    """phi at i = j = 1, 2, 4, ... and at the full ranks, beside chance.

    `deviations` is how many standard deviations phi is above the mean of random subspaces. `shared` is
    the sum of squared cosines, min(i, j) phi: the number of directions in common.
    """
    for name, phi in maps.items():
        d = dims[name]
        _, m, n = phi.shape
        mean = similarity.random_mean(d, m, n)
        deviation = similarity.random_deviation(d, m, n)
        sizes = [2**k for k in range(12) if 2**k <= min(m, n)]
        places = dict.fromkeys([(k, k) for k in sizes] + [(1, n), (m, n)])
        for layer, own in enumerate(phi):
            for i, j in places:
                value, chance = float(own[i - 1, j - 1]), float(mean[i - 1, j - 1])
                sd = float(deviation[i - 1, j - 1])
                yield {
                    "pair": label, "directions": kind, "weight": name, "layer": layer + 1,
                    "i": i, "j": j, "phi": value, "chance": chance,
                    "deviations": (value - chance) / sd if sd > 1e-9 else None,
                    "shared": min(i, j) * value, "shared_chance": min(i, j) * chance,
                }  # fmt: skip


def spectrum_rows(label: str, pairs: Pairs) -> Iterator[Row]:
    """Norm and effective ranks of the effective updates."""
    for name, pair in pairs.items():
        values = spectra.delta_svd(pair).values
        figures = {
            "norm": np.linalg.norm(values, axis=-1),
            "largest": values[:, 0],
            "energy_of_largest": spectra.energy(values)[:, 0],
            "stable_rank": spectra.stable_rank(values),
            "entropy_rank": spectra.entropy_rank(values),
            "rank_for_90": spectra.rank_for_energy(values, 0.9),
        }
        yield from _by_layer({"adapter": label, "weight": name, "rank": pair.rank}, figures)


def amplification_rows(label: str, rank: int, weight: str, found: Amplification) -> Iterator[Row]:
    """Table 7, every layer."""
    ratios = {
        "over_random": found.in_delta / found.in_random_expected,
        "of_own_top": found.in_delta / found.in_weight,
    }
    head = {"adapter": label, "weight": weight, "rank": rank}
    return _by_layer(head, {**found._asdict(), **ratios})


def weight_direction_rows(
    label: str, weight: str, phi: np.ndarray, d: int, control: np.ndarray
) -> Iterator[Row]:
    """Figure 8's right edge: phi of W's top directions with all of an update's, by layer."""
    _, m, n = phi.shape
    figures = {"phi": phi[:, -1, -1], "chance": np.full(len(phi), max(m, n) / d)}
    figures |= {"gaussian": control[:, -1, -1]}
    yield from _by_layer({"adapter": label, "weight": weight, "of_W": m, "of_update": n}, figures)


def _by_layer(head: Row, figures: Mapping[str, Any]) -> Iterator[Row]:
    columns = {key: np.asarray(values).tolist() for key, values in figures.items()}
    for layer, values in enumerate(zip(*columns.values(), strict=True)):
        yield {**head, "layer": layer + 1, **dict(zip(columns, values, strict=True))}


def over_layers(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """One row per combination of `keys`: median (smallest to largest) over the layers."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    result = []
    for key, own in groups.items():
        figures = {
            name: [row[name] for row in own] for name in own[0] if name not in (*keys, "layer")
        }
        result.append(
            {**dict(zip(keys, key, strict=True)), **{k: _range(v) for k, v in figures.items()}}
        )
    return result


def _range(values: Sequence[Any]) -> str:
    if any(value is None for value in values):
        return "–"
    middle, low, high = np.median(values), min(values), max(values)
    return f"{middle:.3g}" if low == high else f"{middle:.3g} ({low:.3g} to {high:.3g})"
