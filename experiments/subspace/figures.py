"""The figures of the subspace analysis: which panels, which layers, which files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.subspace.rows import TITLES, Pairs
from lora_jax.analysis import plots, spectra
from lora_jax.analysis.amplification import Amplification

_SMALL = 16  # ranks up to this one get the zoomed triangle beside the map


class Figures:
    """Draws figures into a folder and remembers them for the report."""

    def __init__(self, folder: Path, layers: Sequence[int], zoom: int):
        self._folder, self._layers, self._zoom = folder, layers, zoom
        self._drawn: dict[str, list[tuple[str, str]]] = {}

    def of(self, table: str) -> list[tuple[str, str]]:
        """(file name, caption) of every figure that belongs to a table."""
        return self._drawn.get(table, [])

    def _save(self, table: str, name: str, caption: str, figure: Figure) -> None:
        name = re.sub(r"[:/]", "-", name)
        plots.save(figure, self._folder / f"{name}.png")
        self._drawn.setdefault(table, []).append((f"{name}.png", caption))

    def _shown(self, depth: int) -> list[int]:
        """Layers to draw, from 1: as configured, else four as in Figures 6 and 7."""
        if wrong := [layer for layer in self._layers if not 1 <= layer <= depth]:
            raise ValueError(f"config.layers: {wrong} are not layers from 1 to {depth}")
        spread = np.linspace(1, depth, min(4, depth)).round().astype(int)
        return list(self._layers) or sorted(set(spread.tolist()))

    def spectra(self, pairs: Mapping[str, Pairs]) -> None:
        """Spectra of all adapters and weights, and their entropy ranks by layer."""
        values = {
            f"{name} {weight}": spectra.delta_svd(pair).values
            for name, own in pairs.items()
            for weight, pair in own.items()
        }
        self._save("spectra", "spectra", "Spectra of the updates", plots.spectra(values))
        ranks = {title: spectra.entropy_rank(own) for title, own in values.items()}
        figure = plots.by_layer(ranks, "effective rank (entropy)")
        self._save("spectra", "effective_ranks", "Effective ranks by layer", figure)

    def similarity(
        self, first: str, second: str, kind: str, maps: Mapping[str, np.ndarray],
        dims: Mapping[str, int], control: Mapping[tuple[int, ...], np.ndarray],
    ) -> None:  # fmt: skip
        """Maps of phi for some layers, with chance beside and minus chance.

        Weights whose maps have another dimension or size get figures of their own.
        """
        groups: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
        for weight, phi in maps.items():
            groups.setdefault((dims[weight], *phi.shape), {})[weight] = phi
        for (d, *_), same in groups.items():
            ending = f"_{'_'.join(same)}" if len(groups) > 1 else ""
            name = f"similarity_{first}_{second}_{kind}{ending}"
            self._maps(first, second, kind, same, d, control, name)

    def _maps(
        self, first: str, second: str, kind: str, same: Mapping[str, np.ndarray], d: int,
        control: Mapping[tuple[int, ...], np.ndarray], name: str,
    ) -> None:  # fmt: skip
        some = next(iter(same.values()))
        zoom = self._zoom if some.shape[1] <= _SMALL and self._zoom < some.shape[2] else 0
        by_layer: dict[str, dict[str, Any]] = {}
        for layer in self._shown(len(some)):
            panels = {name: phi[layer - 1] for name, phi in same.items()}
            if not zoom:
                panels["Gaussian"] = control[d, *some.shape[1:]][0]
            by_layer[f"layer {layer}"] = panels
        rows, columns = f"i: {first}", f"j: {second}"
        caption = f"phi of {first} (i) and {second} (j), {TITLES[kind]}"
        figure = plots.similarity_maps(by_layer, d, rows=rows, columns=columns, zoom=zoom)
        self._save("similarity", name, caption, figure)
        figure = plots.similarity_maps(
            by_layer, d, rows=rows, columns=columns, zoom=zoom, chance="subtracted"
        )
        self._save("similarity", f"{name}_minus_chance", f"{caption}, minus chance", figure)

    def weight_directions(
        self, adapter: str, weight: str, phi: np.ndarray, control: np.ndarray, d: int
    ) -> None:
        """Figure 8: W's top directions against the update's and against a Gaussian matrix's."""
        maps = {
            f"layer {layer}": {adapter: phi[layer - 1], "Gaussian": control[layer - 1]}
            for layer in self._shown(len(phi))
        }
        figure = plots.similarity_maps(
            maps, d, rows=f"i: W {weight}", columns="j", top=None, chance="drawn"
        )
        name = f"weight_directions_{adapter}_{weight}"
        caption = f"phi of W's top directions (i) and A's (j): {adapter} {weight}"
        self._save("weight_directions", name, caption, figure)

    def amplification(self, rows: Mapping[str, Amplification]) -> None:
        """Table 7 as a figure."""
        caption = "Norms of projections, and amplification by layer"
        self._save("amplification", "amplification", caption, plots.amplification(rows))
