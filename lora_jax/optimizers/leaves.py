"""Single leaves of the trees that an optimizer sees: dicts by path, or the nested states of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from lora_jax import partition
from lora_jax.errors import InputError

Leaves = dict[str, Array]  # by path


def leaves_of(tree: Any, paths: Sequence[str]) -> Leaves:
    """The leaves at some paths.

    Raises:
      InputError: a leaf is not there.
    """
    every = dict(zip(_names(tree), jax.tree.leaves(tree), strict=True))
    if missing := [path for path in paths if path not in every]:
        raise InputError(
            f"the optimizer does not see {missing[:5]}, which the method trains; give it all parameters "
            "that have a label, and the labels of Method.labels as they are"
        )
    return {path: every[path] for path in paths}


def with_leaves(tree: Any, leaves: Mapping[str, Array]) -> Any:
    """A tree with other values at some paths."""
    old, structure = jax.tree.flatten(tree)
    new = [leaves.get(name, leaf) for name, leaf in zip(_names(tree), old, strict=True)]
    return jax.tree.unflatten(structure, new)


def _names(tree: Any) -> list[str]:
    """The path of every leaf, in order."""
    names: list[str] = jax.tree.leaves(partition.by_path(lambda path: path, tree))
    return names
