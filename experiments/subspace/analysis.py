"""The whole analysis of a config: computes the tables, draws the figures, and writes both."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.runs import bases
from experiments.runs.fields import SUBSPACE, check_config
from experiments.runs.folder import check_place
from experiments.subspace import directions, page, tables
from experiments.subspace.figures import FigureFolder
from experiments.subspace.tables import Row
from experiments.subspace.updates import Updates, check_comparisons, read
from lora_jax import locking
from lora_jax.analysis import factor_pairs, similarity
from lora_jax.analysis.amplification import Amplification, amplification
from lora_jax.files import check_folder

Tables = dict[str, list[Row]]  # rows by the table's name, a key of `page.SECTIONS`


def analyse(config: ConfigDict, workdir: Path) -> Tables:
    """Analyses the adapters of a config, writes tables and figures, and returns the tables.

    Args:
      config: from `configs/subspace`.
      workdir: the folder to write to.

    Raises:
      FileNotFoundError, ValueError: adapters or the base cannot be read or do not fit, or a field of
        the config is wrong.
    """
    check_config(config, SUBSPACE, ("adapters",))
    check_place(workdir)
    with locking.exclusive(workdir):
        return _analysed(config, workdir)


def _analysed(config: ConfigDict, workdir: Path) -> Tables:
    updates = read(config)
    kinds = directions.checked_kinds(list(config.directions))
    figures = FigureFolder(workdir / "figures", layers=tuple(config.layers), zoom=config.zoom)
    figures.check(updates.pairs)
    check_folder(workdir / "tables")
    check_comparisons(updates, config.comparisons)
    results: Tables = {
        "spectra": [
            row
            for name, pairs in updates.pairs.items()
            for row in tables.spectrum_rows(name, pairs)
        ]
    }
    figures.add_spectra(updates.pairs)
    comparisons = [(first, second, kind) for first, second in config.comparisons for kind in kinds]
    for first, second, kind in tqdm(comparisons, desc="comparisons", disable=None):
        comparison = directions.compare(updates, first, second, kind=kind, key=_key(config, 0))
        figures.add_similarity(comparison)
        results.setdefault("similarity", []).extend(tables.similarity_rows(comparison))
    if config.model:
        results |= _beside_base_weights(config, updates, figures)
    page.write(workdir, config=config, adapters=updates.adapters, tables=results, figures=figures)
    return results


def _beside_base_weights(config: ConfigDict, updates: Updates, figures: FigureFolder) -> Tables:
    """Table 7 and Figure 8: the updates beside the pre-trained weights."""
    amplifications: dict[str, Amplification] = {}
    results: Tables = {"amplification": [], "weight_directions": []}
    top_directions: dict[str, np.ndarray] = {}
    for name, adapter in tqdm(updates.adapters.items(), desc="base weights", disable=None):
        model = bases.adapted(config.model, adapter, config.adapters[name])
        matrices = {
            updates.short_names[path]: matrix
            for path, matrix in factor_pairs.base_matrices(model).items()
            if path in updates.short_names
        }
        for index, (weight, pair) in enumerate(updates.pairs[name].items()):
            matrix, key = matrices[weight], _key(config, index + 1)
            numbers = amplification(pair, matrix, key, draws=config.draws)
            amplifications[f"{name} {weight}"] = numbers
            results["amplification"] += tables.amplification_rows(name, weight, pair.rank, numbers)
            if weight not in top_directions:
                top = max(1, round(config.top_weight_directions * matrix.shape[1]))
                top_directions[weight] = similarity.directions(matrix)[..., :top]
            comparison = directions.compare_with_weight(
                name, weight, pair, top_directions[weight], key
            )
            figures.add_weight_directions(comparison)
            results["weight_directions"] += tables.weight_direction_rows(comparison)
    figures.add_amplification(amplifications)
    return results


def _key(config: ConfigDict, index: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), index)
