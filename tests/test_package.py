"""The wheel works where only its own dependencies are; pyproject.toml declares what is imported."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lora_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PROVIDERS = importlib.metadata.packages_distributions()  # by the name that is imported


def run(*command, cwd, env=None):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def distributions(requirements):
    """Names of the distributions that requirements ask for, ours replaced by what its extras name."""
    names = set()
    for requirement in map(Requirement, requirements):
        if canonicalize_name(requirement.name) == "lora-jax":
            for extra in requirement.extras:
                names |= distributions(EXTRAS[extra])
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def source(package, module):
    """The file of a module of a package in a folder."""
    path = package.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def with_their_requirements(names):
    """Distributions of this environment by name, with all that they need in turn."""
    result, left = {}, [(name, "") for name in names]
    seen = set()
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        result[name] = importlib.metadata.distribution(name)
        for requirement in map(Requirement, result[name].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                left += [(needed, wanted) for wanted in ("", *requirement.extras)]
    return result


def imports(path):
    """Top-level names of the packages that a file imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"lora_jax", "experiments", "configs", "benchmarks"}


def imported(paths):
    """The distributions whose packages files import."""
    names = set().union(*map(imports, paths))
    return {canonicalize_name(provider) for name in names for provider in PROVIDERS[name]}


CORE = distributions(PROJECT["dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as for a release but with the build backend of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def environment(tmp_path):
    """An empty virtual environment; returns its Python."""
    venv.create(tmp_path / "environment", symlinks=True)
    return tmp_path / "environment" / "bin" / "python"


def pip(python, *arguments):
    """Runs this environment's pip on the environment of another Python."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(sys.executable, "-m", "pip", "--python", python, *arguments, cwd=python.parent, env=env)


def link(python, names):
    """Links distributions and what they need into an environment, and nothing else."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    for distribution in with_their_requirements(names).values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))


def adapt_small_model(python, folder):
    """Runs adapt_small_model.py in an environment; checks that it used the package installed there."""
    # -I: neither the clone nor this folder is on the path.
    output = run(python, "-I", Path(__file__).with_name("adapt_small_model.py"), folder, cwd=folder)
    printed = json.loads(output.splitlines()[-1])
    package = Path(printed["file"]).parent
    assert package.is_relative_to(python.parents[1])
    assert (package / "py.typed").is_file()
    assert printed["version"] == lora_jax.__version__
    return package, printed["loaded"]


def test_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(
            archive.read(f"lora_jax-{lora_jax.__version__}.dist-info/METADATA")
        )
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "lora_jax").rglob("*.py")}
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == sources | {"lora_jax/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in information)
    assert metadata["Name"] == "lora_jax"
    assert metadata["Version"] == lora_jax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_wheel_adapts_a_model_where_only_its_dependencies_are(wheel, environment, tmp_path):
    link(environment, CORE)
    pip(environment, "install", "--no-index", "--no-deps", wheel)
    pip(environment, "check")
    package, loaded = adapt_small_model(environment, tmp_path)
    # What `import lora_jax` imports is what is declared, neither less nor more.
    assert imported(source(package, module) for module in loaded) == CORE


CHAT = """
from lora_jax.data.chat_templates import ChatTemplate
from lora_jax.data.conversations import Message

template = "{% for message in messages %}{{ message.content }}!{% endfor %}"
with ChatTemplate(template, "a test", {}) as chat:
    print(*chat.render([((Message("user", "Hello"),), False)]))
"""


def test_chats_are_rendered_where_only_the_extra_is(environment, tmp_path):
    """transformers asks for a package of its own only once it renders, which no import shows."""
    link(environment, CORE | distributions(EXTRAS["data"]))
    printed = run(environment, "-c", CHAT, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert printed == "Hello!\n"


@pytest.mark.slow
def test_wheel_adapts_a_model_in_a_fresh_environment(wheel, environment, tmp_path):
    pip(environment, "install", wheel)
    adapt_small_model(environment, tmp_path)


# Rooms of the library that are not named here need no extra.
NEEDED_EXTRAS = {
    "lora_jax/analysis": ["analysis"],
    "lora_jax/data": ["data", "pictures"],
    "lora_jax/decoding": ["training"],
    "lora_jax/diffusion": ["pictures"],
    "lora_jax/locking.py": ["training"],
    "lora_jax/metrics": ["glue", "data-to-text"],
    "lora_jax/sweeps": ["training"],
    "lora_jax/training": ["training"],
    "experiments": ["experiments"],
    "configs": ["experiments"],
    "benchmarks": ["tests"],
}
ROOMS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "lora_jax").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
)


@pytest.mark.parametrize("place", [*ROOMS, "experiments", "configs", "benchmarks"])
def test_imports_are_declared(place):
    path = ROOT / place
    files = [path] if path.suffix == ".py" else path.rglob("*.py")
    extras = [EXTRAS[extra] for extra in NEEDED_EXTRAS.get(place, [])]
    undeclared = imported(files) - distributions(itertools.chain(*extras)) - CORE
    assert not undeclared, f"pyproject.toml does not declare for {place}: {undeclared}"


def test_experiments_have_what_the_library_needs():
    needed = itertools.chain(*(EXTRAS[e] for r in ROOMS for e in NEEDED_EXTRAS.get(r, [])))
    assert distributions(needed) <= distributions(EXTRAS["experiments"])


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_requirements_files_only_name_extras(path):
    (line,) = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    extras = re.fullmatch(r"-e \.\[(.+)\]", line)[1].split(",")
    assert set(extras) <= EXTRAS.keys()
