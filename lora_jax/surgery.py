"""What methods put into a model, told apart from what was there."""

from __future__ import annotations

from flax import nnx


class Inserted(nnx.Module):
    """Base of every module that a method inserts; other methods do not look inside it."""


def own_modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """The modules of a model by path, in path order, without those that methods inserted."""
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    inserted = [path for path, module in modules.items() if isinstance(module, Inserted)]
    return {
        path: module
        for path, module in sorted(modules.items())
        if not any(path == other or path.startswith(f"{other}/") for other in inserted)
    }
