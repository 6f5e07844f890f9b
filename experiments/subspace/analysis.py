"""The analysis of a config's adapters: rows by table, figures, and the page that shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.report import text_tables
from experiments.runs import bases, folder
from experiments.subspace import rows as rows_of
from experiments.subspace.figures import Figures
from experiments.subspace.rows import Pairs, Row
from lora_jax import files
from lora_jax.adapters import Adapter, adapter_folder, load_adapter
from lora_jax.analysis import factor_pairs, similarity
from lora_jax.analysis.amplification import Amplification, amplification
from lora_jax.files import write_json


def read(config: ConfigDict) -> dict[str, Adapter]:
    """The adapters by name.

    Raises:
      FileNotFoundError, ValueError: a folder is missing or broken, or there is none at all.
    """
    if not config.adapters:
        raise ValueError(
            "config.adapters is empty: configs/subspace/folders.py:NAME=FOLDER,NAME=FOLDER names them"
        )
    return {
        name: load_adapter(adapter_folder(Path(folder)))
        for name, folder in sorted(config.adapters.items(), key=_natural)
    }


def _natural(item: tuple[str, str]) -> list[str | int]:
    """Sorts r8 before r64."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item[0])]


def chosen(pairs: Mapping[str, Pairs], name: str) -> Pairs:
    """The factor pairs of `NAME` by weight, or that of `NAME:WEIGHT` under an empty name.

    Raises:
      ValueError: no such adapter, or no such weight in it.
    """
    adapter, _, weight = name.partition(":")
    if adapter not in pairs:
        raise ValueError(f"comparisons: no adapter {adapter!r}; config.adapters has {list(pairs)}")
    if not weight:
        return pairs[adapter]
    if weight not in pairs[adapter]:
        known = list(pairs[adapter])
        raise ValueError(f"comparisons: {name!r} is not one of the weights {known} of {adapter}")
    return {"": pairs[adapter][weight]}


def analyse(config: ConfigDict, workdir: Path) -> dict[str, list[Row]]:
    """Computes all rows, draws all figures, and writes both; returns the rows by table."""
    adapters = read(config)
    by_path = {name: _matching(own, config.weights, name) for name, own in adapters.items()}
    labels = rows_of.labels(path for own in by_path.values() for path in own)
    pairs = {
        name: {labels[path]: pair for path, pair in own.items()} for name, own in by_path.items()
    }
    kinds = list(config.directions)
    if unknown := [kind for kind in kinds if kind not in rows_of.DIRECTIONS]:
        known = list(rows_of.DIRECTIONS)
        raise ValueError(f"config.directions: unknown {unknown}; known are {known}")
    figures = Figures(workdir / "figures", tuple(config.layers), config.zoom)
    found: dict[str, list[Row]] = {
        "spectra": [row for name, own in pairs.items() for row in rows_of.spectrum_rows(name, own)]
    }
    figures.spectra(pairs)
    tasks = [(first, second, kind) for first, second in config.comparisons for kind in kinds]
    for first, second, kind in tqdm(tasks, desc="comparisons", disable=None):
        rows = _compare(config, figures, pairs, first, second, kind)
        found.setdefault("similarity", []).extend(rows)
    if config.model:
        found |= _against_base(config, figures, adapters, pairs, labels)
    _write(config, workdir, adapters, found, figures)
    return found


def _matching(adapter: Adapter, pattern: str, name: str) -> Pairs:
    pairs = factor_pairs.from_adapter(adapter)
    kept = {path: own for path, own in pairs.items() if re.fullmatch(pattern, path)}
    if not kept:
        raise ValueError(
            f"config.weights {pattern!r} matches no adapted layer of {name}: {list(pairs)}"
        )
    return kept


def _compare(
    config: ConfigDict,
    figures: Figures,
    pairs: Mapping[str, Pairs],
    first: str,
    second: str,
    kind: str,
) -> list[Row]:
    one, other = chosen(pairs, first), chosen(pairs, second)
    label = f"{first} / {second}"
    maps = rows_of.overlaps(one, other, kind, label)
    dims = {name: _dimension(one[name], kind) for name in maps}
    shapes = {(dims[name], *phi.shape[1:]) for name, phi in maps.items()}
    control = {shape: similarity.gaussian_control(_key(config, 0), *shape) for shape in shapes}
    figures.similarity(first, second, kind, maps, dims, control)
    return list(rows_of.similarity_rows(label, kind, maps, dims))


def _dimension(pair: factor_pairs.FactorPair, kind: str) -> int:
    return pair.b.shape[-1] if kind in ("b", "delta_out") else pair.a.shape[1]


def _against_base(
    config: ConfigDict,
    figures: Figures,
    adapters: Mapping[str, Adapter],
    pairs: Mapping[str, Pairs],
    labels: Mapping[str, str],
) -> dict[str, list[Row]]:
    """Table 7 and Figure 8: updates beside the pre-trained weights."""
    amplified: dict[str, Amplification] = {}
    rows: dict[str, list[Row]] = {"amplification": [], "weight_directions": []}
    directions: dict[str, Any] = {}
    for name, adapter in tqdm(adapters.items(), desc="base weights", disable=None):
        model = bases.adapted(config.model, adapter, config.adapters[name])
        matrices = {
            labels[path]: matrix
            for path, matrix in factor_pairs.base_matrices(model).items()
            if path in labels
        }
        for index, (weight, pair) in enumerate(pairs[name].items()):
            matrix, key = matrices[weight], _key(config, index + 1)
            row = amplification(pair, matrix, key, draws=config.draws)
            amplified[f"{name} {weight}"] = row
            rows["amplification"] += rows_of.amplification_rows(name, pair.rank, weight, row)
            d = matrix.shape[1]
            if weight not in directions:
                top = max(1, round(config.top_weight_directions * d))
                directions[weight] = similarity.directions(matrix)[..., :top]
            phi = similarity.overlap(directions[weight], similarity.directions(pair.a))
            gaussian = jax.random.normal(key, pair.a.shape)
            control = similarity.overlap(directions[weight], similarity.directions(gaussian))
            rows["weight_directions"] += rows_of.weight_direction_rows(
                name, weight, phi, d, control
            )
            figures.weight_directions(name, weight, phi, control, d)
    figures.amplification(amplified)
    return rows


def _key(config: ConfigDict, index: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), index)


_KEYS = {
    "spectra": ("adapter", "weight", "rank"),
    "similarity": ("pair", "directions", "weight", "i", "j"),
    "amplification": ("adapter", "weight", "rank"),
    "weight_directions": ("adapter", "weight", "of_W", "of_update"),
}
_HEADINGS = {
    "spectra": "Spectra of the effective updates",
    "similarity": "Similarity of subspaces (Figures 3, 4, 6, 7)",
    "amplification": "Projections of W and amplification (Table 7)",
    "weight_directions": "W's top directions and the update's (Figure 8)",
}
_NOTES = {
    "spectra": """
The effective update is (alpha/r) B A. `rank_for_90`: directions that hold 90% of the energy.""",
    "similarity": """
`phi` of the first i and the first j directions, its mean for random subspaces (`chance`), and how many
standard deviations it is above that; `shared` = min(i, j) phi.""",
    "amplification": """
`in_delta`, `in_weight`, `in_random`: norm of U^T W V^T with the directions of the update, of W, and random
ones; `factor` = norm of the effective update, alpha/r included, over `in_delta`.""",
    "weight_directions": """
phi of all `of_W` top right-singular vectors of W and all of A's; `gaussian`: a random matrix for A.""",
}


def _write(
    config: ConfigDict, workdir: Path, adapters: Mapping[str, Adapter],
    found: Mapping[str, list[Row]], figures: Figures,
) -> None:  # fmt: skip
    about = [
        {
            "adapter": name,
            "method": str(adapter.method),
            **{key: adapter.notes.get(key, "") for key in ("task", "model", "seed")},
        }
        for name, adapter in adapters.items()
    ]
    parts = ["# Subspaces of low-rank updates", "Values: median (smallest to largest) over layers."]
    parts.append(text_tables.markdown(about))
    for name, rows in found.items():
        parts += [f"## {_HEADINGS[name]}", _NOTES[name].strip()]
        parts += [text_tables.markdown(rows_of.over_layers(rows, _KEYS[name]))]
        parts += [f"![{text}](figures/{file})" for file, text in figures.of(name)]
        files.write_text(workdir / "tables" / f"{name}.csv", text_tables.csv_text(rows))
    files.write_text(workdir / "analysis.md", "\n\n".join(parts) + "\n")
    write_json(
        workdir / "analysis.json",
        {"config": folder.plain(config), "adapters": about, "tables": dict(found)},
    )
