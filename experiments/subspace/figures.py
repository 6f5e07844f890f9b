"""The figures of the analysis: their panels, the layers they show, and their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.subspace.directions import KINDS, Comparison, WeightComparison
from experiments.subspace.updates import Pairs
from lora_jax.analysis import plots, spectra
from lora_jax.analysis.amplification import Amplification
from lora_jax.errors import InputError
from lora_jax.files import check_folder

_SMALL = 16  # maps with up to this many rows get a zoomed triangle beside them


class Drawn(NamedTuple):
    """A figure that has been written: the name of its file, and its caption."""

    file: str
    caption: str


class FigureFolder:
    """Draws figures into a folder, and remembers which belong to which table of the page.

    Args:
      folder: where the files go; made if needed.
      layers: layers to draw, from 1; empty for four from first to last, as in Figures 6 and 7.
      zoom: size of the triangle beside small maps.
    """

    def __init__(self, folder: Path, *, layers: Sequence[int], zoom: int):
        self._folder = folder
        self._layers = layers
        self._zoom = zoom
        self._drawn: dict[str, list[Drawn]] = {}

    def of_table(self, table: str) -> list[Drawn]:
        """The figures to show below a table."""
        return self._drawn.get(table, [])

    def _save(self, figure: Figure, table: str, name: str, caption: str) -> None:
        file = f"{re.sub(r'[:/]', '-', name)}.png"
        plots.save(figure, self._folder / file)
        self._drawn.setdefault(table, []).append(Drawn(file, caption))

    def check(self, pairs: Mapping[str, Pairs]) -> None:
        """Raises InputError if a layer to draw is not there in an adapter, before anything is drawn."""
        check_folder(self._folder)
        for by_weight in pairs.values():
            for pair in by_weight.values():
                self._layers_to_draw(len(pair.a))

    def _layers_to_draw(self, depth: int) -> list[int]:
        if wrong := [layer for layer in self._layers if not 1 <= layer <= depth]:
            raise InputError(f"config.layers: {wrong} are not layers from 1 to {depth}")
        spread = np.linspace(1, depth, min(4, depth)).round().astype(int)
        return list(self._layers) or sorted(set(spread.tolist()))

    def add_spectra(self, pairs: Mapping[str, Pairs]) -> None:
        """Draws the spectra of all adapters and weights, and their entropy ranks by layer."""
        values = {
            f"{adapter} {weight}": spectra.delta_svd(pair).values
            for adapter, pair_by_weight in pairs.items()
            for weight, pair in pair_by_weight.items()
        }
        self._save(plots.spectra(values), "spectra", "spectra", "Spectra of the updates")
        ranks = {title: spectra.entropy_rank(spectrum) for title, spectrum in values.items()}
        figure = plots.by_layer(ranks, "effective rank (entropy)")
        self._save(figure, "spectra", "effective_ranks", "Effective ranks by layer")

    def add_similarity(self, comparison: Comparison) -> None:
        """Draws maps of phi for some layers, with chance beside them and minus chance.

        Weights whose maps have the same size and dimension share a figure.
        """
        groups: dict[tuple[int, ...], list[str]] = {}
        for weight, phi in comparison.phi.items():
            groups.setdefault((comparison.dimensions[weight], *phi.shape), []).append(weight)
        for weights in groups.values():
            self._add_maps(comparison, weights, alone=len(groups) == 1)

    def _add_maps(self, comparison: Comparison, weights: Sequence[str], *, alone: bool) -> None:
        first, second, kind = comparison.first, comparison.second, comparison.kind
        depth, m, n = comparison.phi[weights[0]].shape
        zoom = self._zoom if m <= _SMALL and self._zoom < n else 0
        maps: dict[str, dict[str, np.ndarray]] = {}
        for layer in self._layers_to_draw(depth):
            panels = {weight: comparison.phi[weight][layer - 1] for weight in weights}
            if not zoom:
                panels["Gaussian"] = comparison.control[weights[0]]
            maps[f"layer {layer}"] = panels
        d = comparison.dimensions[weights[0]]
        rows, columns = f"i: {first}", f"j: {second}"
        name = f"similarity_{first}_{second}_{kind}" + ("" if alone else f"_{'_'.join(weights)}")
        caption = f"phi of {first} (i) and {second} (j), {KINDS[kind].title}"
        figure = plots.similarity_maps(maps, d, rows=rows, columns=columns, zoom=zoom)
        self._save(figure, "similarity", name, caption)
        figure = plots.similarity_maps(
            maps, d, rows=rows, columns=columns, zoom=zoom, chance="subtracted"
        )
        self._save(figure, "similarity", f"{name}_minus_chance", f"{caption}, minus chance")

    def add_weight_directions(self, comparison: WeightComparison) -> None:
        """Draws Figure 8: W's top directions against the update's and a Gaussian matrix's."""
        adapter, weight = comparison.adapter, comparison.weight
        maps = {
            f"layer {layer}": {
                adapter: comparison.phi[layer - 1],
                "Gaussian": comparison.control[layer - 1],
            }
            for layer in self._layers_to_draw(len(comparison.phi))
        }
        figure = plots.similarity_maps(
            maps, comparison.dimension, rows=f"i: W {weight}", columns="j"
        )
        name = f"weight_directions_{adapter}_{weight}"
        caption = f"phi of W's top directions (i) and A's (j): {adapter} {weight}"
        self._save(figure, "weight_directions", name, caption)

    def add_amplification(self, rows: Mapping[str, Amplification]) -> None:
        """Draws Table 7, from its numbers by adapter and weight."""
        caption = "Norms of projections, and amplification by layer"
        self._save(plots.amplification(rows), "amplification", "amplification", caption)
