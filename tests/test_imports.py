"""No module imports itself in a circle; the layers in pyproject.toml are checked by lint-imports."""

import graphlib
from pathlib import Path

import grimp


def test_no_circle_of_modules(monkeypatch):
    """Imports inside functions count, and so do those of a package by its own modules."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    graph = grimp.build_graph("lora_jax", "configs", "experiments", "benchmarks", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names the circle
