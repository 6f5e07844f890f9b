"""What adapter folders are: methods, ranks, bases, scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import text_tables
from lora_jax import partition
from lora_jax.adapters import DESCRIPTION, UNKNOWN_BASE, Adapter, load_adapter
from lora_jax.analysis import spectra
from lora_jax.analysis.factor_pairs import FactorPair, from_adapter
from lora_jax.errors import InputError, MissingFileError


def found(places: Sequence[str]) -> list[Path]:
    """The adapter folders at and below some folders, in the order of their names.

    Raises:
      InputError: a place is no folder, or there is no adapter below it.
    """
    folders: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise MissingFileError(
                f"{place} is not a folder; name adapter folders, or folders above them"
            )
        below = sorted(path.parent for path in place.rglob(DESCRIPTION))
        if not below:
            raise InputError(f"there is no adapter at or below {place} (no {DESCRIPTION})")
        folders += below
    return list(dict.fromkeys(folders))


def listed(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """A table of adapters, and what is wrong with those that cannot be read."""
    rows, errors = [], []
    for folder in folders:
        try:
            rows.append(_row(folder, load_adapter(folder)))
        except (ValueError, OSError) as error:
            errors.append(str(error))
    head = ("folder", "method", "rank", "values", "size", "model", "base", "scores")
    return text_tables.pipe_table(head, rows) if rows else "", errors


def _row(folder: Path, adapter: Adapter) -> tuple[str, ...]:
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    ranks = [value.shape[-1] for path, value in adapter.values.items() if path.endswith("/a")]
    scores = {k: v for k, v in _metrics(adapter.notes).items() if isinstance(v, int | float)}
    return (
        str(folder),
        " + ".join(name for name, _ in adapter.method.spec),
        span(np.array(ranks), "d") if ranks else "-",
        f"{partition.count(adapter.values):,}",
        f"{size / 2**20:.2f} MiB",
        str(adapter.notes.get("model", "-")),
        "unknown" if adapter.base == UNKNOWN_BASE else adapter.base[:12],
        ", ".join(f"{name} {value:.4g}" for name, value in scores.items()) or "-",
    )


def _metrics(notes: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics = notes.get("metrics")  # anybody may edit notes
    return metrics if isinstance(metrics, Mapping) else {}


def updates(adapter: Adapter) -> str:
    """A table of an adapter's updates: rank, norm, and how many directions hold nine tenths of its energy."""
    rows = []
    for name, pair in from_adapter(adapter).items():
        values = spectra.any_delta_svd(pair).values
        norms = np.linalg.norm(values, axis=-1)
        used = spectra.rank_for_energy(values, 0.9)
        rows.append(
            (name, str(pair.layers), str(pair.rank), f"{pair.scale:g}", span(norms, ".4g"),
             span(values[:, 0], ".4g"), span(used, "d"))
        )  # fmt: skip
    head = ("update", "layers", "rank", "scale", "norm", "largest singular value", "rank for 90%")
    return text_tables.pipe_table(head, rows)


def span(values: np.ndarray, form: str) -> str:
    """The smallest and the largest of some numbers."""
    least, most = format(values.min(), form), format(values.max(), form)
    return least if least == most else f"{least} to {most}"


def compared(one: Adapter, other: Adapter) -> str:
    """A table of what two adapters change: norms, and the cosine between their updates.

    The cosine is that of the two matrices, sum of products over product of norms: 1 if they are the same
    up to a factor, near 0 if they are unrelated. Layers that only one of them adapts have a dash.

    Raises:
      InputError: the adapters are of different bases.
    """
    if one.base != other.base and UNKNOWN_BASE not in (one.base, other.base):
        raise InputError(
            f"the adapters are of different bases ({one.base[:12]} and {other.base[:12]}): their updates "
            "have nothing to do with each other"
        )
    first, second = from_adapter(one), from_adapter(other)
    rows = []
    for name in dict.fromkeys([*first, *second]):
        pairs = [pairs.get(name) for pairs in (first, second)]
        norms = [
            "-" if pair is None else span(np.sqrt(_inner(pair, pair)), ".4g") for pair in pairs
        ]
        ranks = ["-" if pair is None else str(pair.rank) for pair in pairs]
        rows.append((name, *ranks, *norms, _cosine(*pairs)))
    return text_tables.pipe_table(
        ("update", "rank 1", "rank 2", "norm 1", "norm 2", "cosine"), rows
    )


def _inner(one: FactorPair, other: FactorPair) -> np.ndarray:
    """The inner product of two updates for every layer, from the factors: tr(b1 b2^T (a1^T a2)^T)."""
    inputs = np.einsum("lir,lis->lrs", *(np.asarray(p.a, np.float64) for p in (one, other)))
    outputs = np.einsum("lro,lso->lrs", *(np.asarray(p.b, np.float64) for p in (one, other)))
    product: np.ndarray = one.scale * other.scale * np.sum(inputs * outputs, axis=(1, 2))
    return product


def _cosine(one: FactorPair | None, other: FactorPair | None) -> str:
    if one is None or other is None:
        return "-"
    sizes = (one.layers, one.a.shape[1], one.b.shape[2])
    if sizes != (other.layers, other.a.shape[1], other.b.shape[2]):
        return "another shape"
    norm = np.sqrt(_inner(one, one) * _inner(other, other))
    values = [p / n for p, n in zip(_inner(one, other), norm, strict=True) if n > 0]
    finite = np.array([v for v in values if math.isfinite(v)])
    return span(finite, ".3f") if len(finite) else "-"
