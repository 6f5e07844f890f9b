"""The list of tests of which only every n-th case runs names tests that there are."""

import ast
from pathlib import Path

from sampled import EVERY, left_out

ROOT = Path(__file__).parents[1]


def test_every_named_test_is_there_and_has_cases():
    for name, every in EVERY.items():
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        arguments = [argument.arg for argument in found.args.args]
        assert arguments and every > 1, name


def test_the_first_of_every_n_runs():
    name = next(name for name, every in EVERY.items() if every == 3)
    names = [f"{name}[{i}]" for i in range(7)]
    assert left_out(["tests/other.py::test[1]", *names]) == [2, 3, 5, 6]
