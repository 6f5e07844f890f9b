"""Adapters combined and reduced: folders in, a folder out, and how far it is from the exact sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.adapters.listing import span
from experiments.runs import text_tables
from experiments.runs.folder import check_place
from lora_jax import combination, partition
from lora_jax.adapters import Adapter
from lora_jax.analysis.factor_pairs import from_adapter
from lora_jax.errors import InputError

_FAR = 0.5


def combined(
    adapters: Mapping[str, Adapter], by_name: Mapping[str, float], output: Path, **settings: Any
) -> list[str]:
    """Writes the combination of some adapters; what it is, in lines."""
    _check_output(output)
    result = combination.combine(adapters, by_name, **settings)
    return [*_written(result, output), *_distances(adapters, by_name, result)]


def reduced(adapter: Adapter, output: Path, **settings: Any) -> list[str]:
    """Writes an adapter of a smaller rank; what it is, in lines."""
    _check_output(output)
    result = combination.reduce(adapter, **settings)
    return [*_written(result, output), *_distances({"adapter": adapter}, {}, result)]


def _check_output(output: Path) -> None:
    check_place(output)
    if output.exists():
        raise InputError(f"--output={output} exists already; choose another folder")


def _written(result: Adapter, output: Path) -> list[str]:
    result.save(output)
    ranks = np.array([pair.rank for pair in from_adapter(result).values()])
    values = partition.count(result.values)
    shown = f"{len(ranks)} updates of rank {span(ranks, 'd')}, {values:,} values"
    return [f"adapter: {output} ({shown})"]


def _distances(
    adapters: Mapping[str, Adapter], by_name: Mapping[str, float], result: Adapter
) -> list[str]:
    """A table of the distance from the exact weighted sum, relative to its norm."""
    found = combination.distances(adapters, by_name, result)
    rows = [(name, f"{d.mean():.4g}", f"{d.max():.4g}") for name, d in found.items()]
    head = ("update", "distance from the exact sum, as a share of it: mean over layers", "largest")
    lines = [text_tables.pipe_table(head, rows)]
    if max(float(d.mean()) for d in found.values()) > _FAR:
        lines.append(
            "far from the sum: linear, ties and the like combine A and B by themselves, and runs of one "
            "seed begin with the same A. cat is exact; svd is the nearest of a rank"
        )
    return lines
