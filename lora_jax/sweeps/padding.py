"""Zero-padding of factors, so that runs of different ranks have arrays of one shape.

A padded column of A and its row of B are both zero. Each one's gradient is a product with the other,
so it is exactly zero, and so are all of Adam's moments, weight decay and updates: the padding stays
zero for ever, adds exact zeros to the output, and the run is the one without padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lora_jax.errors import InputError
from lora_jax.partition import Params

Shape = tuple[int, ...]


def padded(params: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Params:
    """Arrays brought to larger shapes by zeros at the end of the axis that differs.

    Raises:
      ValueError: other paths, or a shape that differs by more than one larger axis.
    """
    _same_paths(params, shapes)
    result = {}
    for path, leaf in params.items():
        widths = [(0, new - old) for old, new in zip(leaf.shape, shapes[path], strict=False)]
        grown = [width for _, width in widths if width]
        if len(leaf.shape) != len(shapes[path]) or len(grown) > 1 or min(grown, default=0) < 0:
            raise InputError(f"{path} of shape {leaf.shape} cannot be padded to {shapes[path]}")
        result[path] = jnp.pad(leaf, widths) if grown else leaf
    return result


def cut(params: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The inverse of `padded`: the leading part of every array.

    Raises:
      ValueError: other paths.
    """
    _same_paths(params, shapes)
    return {
        path: leaf[tuple(slice(size) for size in shapes[path])] for path, leaf in params.items()
    }


def shapes_of(params: Mapping[str, Any]) -> dict[str, Shape]:
    """The shape of every array by path."""
    return {path: tuple(leaf.shape) for path, leaf in params.items()}


def stacked(runs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Arrays of several runs with a first axis of runs, on this host.

    Raises:
      ValueError: the runs have other paths.
    """
    for run in runs[1:]:
        _same_paths(run, runs[0])
    return {path: np.stack([np.asarray(run[path]) for run in runs]) for path in runs[0]}


def _same_paths(params: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    if odd := sorted(set(params) ^ set(others)):
        raise InputError(f"the runs have different parameters, for example {odd[:5]}")
