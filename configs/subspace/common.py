"""What all configs of the subspace analysis share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict


def subspace_config(
    adapters: Mapping[str, str], comparisons: Sequence[tuple[str, str]] = (), model: str = ""
) -> ConfigDict:
    """All fields with their defaults.

    Args:
      adapters: name in figures and tables -> adapter folder, or run folder.
      comparisons: pairs of these names; i counts the directions of the first, j those of the second. With
        a weight behind each name, `("r8:query", "r8:value")`, two kinds of weights are compared.
      model: the base of the adapters (a folder, `package:NAME`, or a hub name); without it the
        amplification (Table 7) and the similarity with W (Figure 8) are left out.
    """
    return ConfigDict(
        {
            "adapters": dict(adapters),
            "comparisons": tuple(tuple(pair) for pair in comparisons),
            "model": model,
            # Singular vectors to compare: "a" (of A alone, as the paper's figures), "b" (of B alone, the
            # footnote's variant), "delta_in" and "delta_out" (of the effective update, both sides).
            "directions": ("a", "delta_in"),
            "weights": ".*",  # pattern: paths of the adapted layers to analyse
            "layers": (),  # shown in figures, counted from 1; empty: first, two between, last
            "zoom": 8,  # size of the triangle beside the maps if the first adapter's rank is small
            "top_weight_directions": 0.1,  # share of W's directions in Figure 8
            "draws": 8,  # random matrices for the control of Table 7
            "seed": 0,  # of everything random
        }
    )
