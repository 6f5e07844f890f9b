"""Variables that several modules hold."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx


def shared_weights(modules: Mapping[str, nnx.Module]) -> dict[str, str]:
    """The layers that hold a Variable which another layer holds too, with a text that names both.

    A shared Variable would be merged twice. A layer that is used twice is one layer, and fine.
    """
    return {
        path: f"{' and '.join(sorted(name for _, name in held))} are one Variable, so their layers "
        "cannot have separate updates; share the whole layer instead of its weight"
        for held in shared_variables(modules)
        for path, _ in held
    }


def shared_variables(modules: Mapping[str, nnx.Module]) -> list[list[tuple[str, str]]]:
    """The Variables that several modules hold: the path of each module, and of the Variable in it."""
    holders: dict[int, list[tuple[str, str]]] = {}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if isinstance(value, nnx.Variable):
                holders.setdefault(id(value), []).append((path, f"{path}/{name}"))
    return [held for held in holders.values() if len(held) > 1]
