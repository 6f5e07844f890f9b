"""How far two trees of arrays are apart."""

from __future__ import annotations

import numpy as np


def deviation(ours, reference) -> float:
    """Largest difference of two trees, each leaf relative to its own largest value; NaN if one has NaN.

    A leaf far smaller than all others is measured by 1% of the largest: a key's bias has gradient
    zero (softmax ignores a shift), and what is there is rounding.
    """
    assert set(ours) == set(reference)
    tops = {path: np.abs(value).max() for path, value in reference.items()}
    floor = 0.01 * np.max(list(tops.values()))
    differences = []
    for path, value in reference.items():
        leaf = np.asarray(ours[path])
        assert leaf.shape == value.shape and leaf.dtype == np.float32, path
        differences.append(np.abs(leaf - value).max() / np.maximum(tops[path], floor))
    return float(np.max(differences))  # unlike Python's, this maximum of a NaN is NaN
