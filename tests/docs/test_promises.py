"""The counts on docs/promises.md are those of the repository, and what it says is not done is not done."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/promises.md").read_text()
COUNTS = {
    name.strip(): int(count.replace(",", ""))
    for count, name in re.findall(r"^\| ([\d,]+) \| (.+?) \|$", PAGE, re.M)
}
_STOPS = re.compile(r"\bKilled\b|SIGKILL|SIGTERM|\.kill\(|\b_exit\(")


@functools.cache
def functions(folder):
    """The test functions of a folder: their text, and the node."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.append(("\n".join(lines[node.lineno - 1 : node.end_lineno]), node))
    return found


def random_files():
    """The examples that Hypothesis draws for the tests of tests/fuzz, as their decorators say."""
    total = 0
    for _, node in functions(ROOT / "tests/fuzz"):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                given = {keyword.arg: keyword.value for keyword in decorator.keywords}
                value = given.get("max_examples")
                if value is None and getattr(decorator.func, "id", "") == "fixed_settings":
                    value = decorator.args[0]
                total += value.value if isinstance(value, ast.Constant) else 0
    return total


def raised():
    """Places that raise an error of `lora_jax.errors`."""
    kinds = (
        r"(InputError|InputTypeError|MissingFileError|FileError|SettingError|FolderInUseError)\("
    )
    files = [p for name in ("lora_jax", "experiments") for p in (ROOT / name).rglob("*.py")]
    return sum(len(re.findall(rf"raise (errors\.)?{kinds}", p.read_text())) for p in files)


MEASURED = {
    "tests of files that are wrong at random": lambda: len(functions(ROOT / "tests/fuzz")),
    "random files that these tests read in a run": random_files,
    "tests in which a program is killed or stopped in the midst of something": lambda: sum(
        bool(_STOPS.search(text)) for text, _ in functions(ROOT / "tests")
    ),
    "places that refuse an input, each with its own message": raised,
    "test functions": lambda: len(functions(ROOT / "tests")),
    "contracts on who may import whom": lambda: len(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_counts_are_those_of_the_repository(name):
    """The page says at least so many; it need not be written again for every test more."""
    count = MEASURED[name]()
    assert COUNTS[name] <= count <= 1.5 * COUNTS[name] + 2, (
        f"docs/promises.md: {name} are {count:,}"
    )


def test_no_other_counts_are_on_the_page():
    assert COUNTS.keys() == MEASURED.keys()


_NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_the_library_unpickles_nothing_and_runs_no_code_of_files():
    for path in (ROOT / "lora_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not _NEVER_IMPORTED & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "yaml.load"), path
                assert all(keyword.arg != "allow_pickle" for keyword in node.keywords), path
                assert all(
                    keyword.arg != "trust_remote_code" or ast.unparse(keyword.value) == "False"
                    for keyword in node.keywords
                ), path


def test_pytorch_files_are_read_as_tensors_alone():
    text = "".join(p.read_text() for p in (ROOT / "experiments").rglob("*.py"))
    calls = re.findall(r"torch\.load\([^)]*\)", text)
    assert calls and all("weights_only=True" in call for call in calls)
