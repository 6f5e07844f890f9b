"""The documentation site builds with warnings as errors, and its API has every public name."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_jax
from lora_jax import linen, training

ROOT = Path(__file__).parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)} (pip install '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    # Not --quiet, which hides warnings from --strict, too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_has_its_place(site):
    text = "".join(path.read_text() for path in (site / "api").rglob("index.html"))
    headings = re.findall(r'<h2 id="lora_jax[^"]*" class="doc doc-heading">(.*?)</h2>', text, re.S)
    there = {name for heading in headings for name in re.findall(r"lora_jax[\w.]*", heading)}
    names = {f"lora_jax.{name}" for name in lora_jax.__all__ if name != "linen"}
    names |= {f"lora_jax.training.{name}" for name in training.__all__}
    names |= {f"lora_jax.linen.{name}" for name in linen.__all__}
    assert names - there == set()
    everywhere = set(re.findall(r'id="(lora_jax[\w.]*)"', text))
    assert len(everywhere) > 500 and not [name for name in everywhere if "._" in name]
    modules = {name.rpartition(".")[0] for name in everywhere}
    # Constants have no docstrings of their own and stand in their module's source.
    used = {name for name in imported_on_pages() if not name.rpartition(".")[2].isupper()}
    assert len(used) > 30 and used - there - everywhere - modules == set()


def imported_on_pages():
    """What the Python of the pages imports of the library."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
        for module, names in re.findall(r"^ *from (lora_jax[\w.]*) import ([\w, ]+)$", text, re.M):
            yield from (f"{module}.{name}" for name in names.split(", "))


def test_files_outside_of_docs_are_pages(site):
    """Notebooks with their pictures, source files, and Markdown of the repository."""
    notebook = (site / "files/notebooks/01_lora_from_scratch/index.html").read_text()
    assert notebook.count("<img") >= 3
    assert list((site / "files/notebooks").glob("01_lora_from_scratch_*.png"))
    source = (site / "files/lora_jax/costs/chips/index.html").read_text()
    assert "class Chip:" in re.sub(r"<[^>]+>", "", source)
    text = (site / "variants/index.html").read_text()
    assert 'href="../files/notebooks/06_variants/"' in text


def test_pages_say_the_version(site):
    assert f"lora_jax {lora_jax.__version__}" in (site / "start/index.html").read_text()


def test_nested_lists_are_nested(site):
    assert re.search(r"<li>[^<]*<ul>", (site / "results/index.html").read_text())
