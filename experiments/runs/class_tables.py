"""What commands print of classes and numbers: scores, each class, the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.runs.record import shown
from lora_jax.data.labels import short_name

_NAMES = {"macro_f1": "macro F1", "micro_f1": "micro F1", "matthews": "Matthews", "mse": "MSE"}
_MOST = 12  # classes of a printed matrix
_ROWS = 30  # of a printed table of classes


def value(name: str, score: float | None) -> str:
    """A score for a table: in percent, but for a mean squared error, which has the unit of the labels."""
    number = shown(score)
    return f"{number:.4g}" if name == "mse" else f"{100 * number:.2f}"


def plain_lines(scores: Mapping[str, float | None]) -> list[str]:
    """The scores of one evaluation, in percent as those of a run are; a mean squared error is none."""
    lines = [f"  {_NAMES.get(name, name):24s} {value(name, s):>8s}" for name, s in scores.items()]
    return [f"  scores in %{', but for MSE' if 'mse' in scores else ''}:", *lines]


def score_lines(
    columns: Mapping[str, Mapping[str, float | None]], spreads: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A table of scores (rows) by what was scored (columns).

    Args:
      columns: scores by title.
      spreads: by title, standard deviations by score, for those of several seeds.
    """
    names = next(iter(columns.values()))
    widths = {title: max(len(title), 12) for title in columns}
    lines = [f"  {'':14s}" + "".join(f"  {title:>{widths[title]}s}" for title in columns)]
    for name in names:
        cells = []
        for title, scores in columns.items():
            text = value(name, scores.get(name))
            if std := spreads.get(title, {}).get(name):
                text += f" ±{value(name, std)}"
            cells.append(f"  {text:>{widths[title]}s}")
        lines.append(f"  {_NAMES.get(name, name):14s}{''.join(cells)}".rstrip())
    return lines


def class_lines(by_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Precision, recall and F1 of every class in percent; of very many classes the worst."""
    chosen = list(by_class)
    lines = []
    if len(chosen) > _ROWS:
        chosen = sorted(chosen, key=lambda name: by_class[name]["f1"])[:_ROWS]
        lines = [f"  the {_ROWS} of {len(by_class)} classes with the lowest F1:"]
    width = max(len(short_name(name)) for name in chosen)
    lines.append(f"  {'class':{max(width, 5)}s}  precision  recall      F1  support")
    for name in chosen:
        p, r, f = (100 * by_class[name][key] for key in ("precision", "recall", "f1"))
        support = by_class[name]["support"]
        lines.append(
            f"  {short_name(name):{max(width, 5)}s}  {p:9.2f}  {r:6.2f}  {f:6.2f}  {support:7,}"
        )
    return lines


def matrix_lines(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    """The confusion matrix, rows are labels; of many classes the pairs that are confused most."""
    if len(classes) > _MOST:
        return _confused(np.asarray(matrix), classes)
    names = [short_name(name) for name in classes]
    left = max(map(len, names))
    widths = [
        max(len(name), *(len(f"{row[i]:,}") for row in matrix)) for i, name in enumerate(names)
    ]
    head = "  ".join(f"{name:>{width}s}" for name, width in zip(names, widths, strict=True))
    lines = ["  confusion matrix, rows are labels, columns predictions:", f"  {'':{left}s}  {head}"]
    for name, row in zip(names, matrix, strict=True):
        cells = "  ".join(f"{n:>{width},}" for n, width in zip(row, widths, strict=True))
        lines.append(f"  {name:{left}s}  {cells}")
    return lines


def _confused(matrix: np.ndarray, classes: Sequence[str]) -> list[str]:
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [divmod(int(place), len(classes)) for place in order if wrong.flat[place]]
    if not pairs:
        return ["  no class is confused with another"]
    lines = ["  most often confused (label -> prediction: rows):"]
    return lines + [
        f"  {short_name(classes[i])} -> {short_name(classes[j])}: {wrong[i, j]:,}" for i, j in pairs
    ]
