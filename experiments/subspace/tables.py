"""The tables of the analysis: one row per adapter or pair of adapters, weight and layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from experiments.subspace.directions import Comparison, WeightComparison
from experiments.subspace.updates import Pairs
from lora_jax.analysis import similarity, spectra
from lora_jax.analysis.amplification import Amplification

Cell = str | int | float | None
Row = dict[str, Cell]


def spectrum_rows(adapter: str, pairs: Pairs) -> Iterator[Row]:
    """Norm and effective ranks of the effective updates of an adapter."""
    for weight, pair in pairs.items():
        values = spectra.delta_svd(pair).values
        columns = {
            "norm": np.linalg.norm(values, axis=-1),
            "largest": values[:, 0],
            "energy_of_largest": spectra.energy(values)[:, 0],
            "stable_rank": spectra.stable_rank(values),
            "entropy_rank": spectra.entropy_rank(values),
            "rank_for_90": spectra.rank_for_energy(values, 0.9),
        }
        yield from _by_layer({"adapter": adapter, "weight": weight, "rank": pair.rank}, columns)


def similarity_rows(comparison: Comparison) -> Iterator[Row]:
    """phi at i = j = 1, 2, 4, ... and at the full ranks, beside chance.

    `deviations` is how many standard deviations phi is above the mean of random subspaces. `shared` is
    the sum of squared cosines, min(i, j) phi: the number of directions in common.
    """
    for weight, phi in comparison.phi.items():
        d = comparison.dimensions[weight]
        _, m, n = phi.shape
        mean = similarity.random_mean(d, m, n)
        deviation = similarity.random_deviation(d, m, n)
        powers = [2**k for k in range(12) if 2**k <= min(m, n)]
        places = dict.fromkeys([(k, k) for k in powers] + [(1, n), (m, n)])
        for layer, phi_of_layer in enumerate(phi):
            for i, j in places:
                value, chance, sd = (
                    float(x[i - 1, j - 1]) for x in (phi_of_layer, mean, deviation)
                )
                yield {
                    "pair": comparison.label, "directions": comparison.kind, "weight": weight,
                    "layer": layer + 1, "i": i, "j": j, "phi": value, "chance": chance,
                    "deviations": (value - chance) / sd if sd > 1e-9 else None,
                    "shared": min(i, j) * value, "shared_chance": min(i, j) * chance,
                }  # fmt: skip


def amplification_rows(
    adapter: str, weight: str, rank: int, numbers: Amplification
) -> Iterator[Row]:
    """Table 7 for every layer, with two ratios."""
    ratios = {
        "over_random": numbers.in_delta / numbers.in_random_expected,
        "of_own_top": numbers.in_delta / numbers.in_weight,
    }
    names: Row = {"adapter": adapter, "weight": weight, "rank": rank}
    return _by_layer(names, {**numbers._asdict(), **ratios})


def weight_direction_rows(comparison: WeightComparison) -> Iterator[Row]:
    """The right edge of Figure 8: phi of the top directions of W and all directions of A."""
    layers, m, n = comparison.phi.shape
    names: Row = {
        "adapter": comparison.adapter, "weight": comparison.weight, "of_W": m, "of_update": n,
    }  # fmt: skip
    columns = {
        "phi": comparison.phi[:, -1, -1],
        "chance": np.full(layers, max(m, n) / comparison.dimension),
        "gaussian": comparison.control[:, -1, -1],
    }
    return _by_layer(names, columns)


def _by_layer(names: Row, columns: Mapping[str, Shaped[np.ndarray, " layers"]]) -> Iterator[Row]:
    """One row per layer: the names, the layer from 1, and its value of every column."""
    values_by_layer = zip(*(column.tolist() for column in columns.values()), strict=True)
    for layer, values in enumerate(values_by_layer):
        yield {**names, "layer": layer + 1, **dict(zip(columns, values, strict=True))}


def summarise_layers(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """One row per combination of `keys`: median (smallest to largest) over the layers."""
    groups: dict[tuple[Cell, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    summary: list[Row] = []
    for combination, group in groups.items():
        columns = [name for name in group[0] if name not in (*keys, "layer")]
        ranges = {name: _range([row[name] for row in group]) for name in columns}
        summary.append({**dict(zip(keys, combination, strict=True)), **ranges})
    return summary


def _range(cells: Sequence[Cell]) -> str:
    values = [cell for cell in cells if isinstance(cell, int | float)]
    if len(values) < len(cells):
        return "–"
    middle, low, high = np.median(values), min(values), max(values)
    return f"{middle:.3g}" if low == high else f"{middle:.3g} ({low:.3g} to {high:.3g})"
