"""The Python lines of the README and of the pages run as they stand; commands, configs and links exist."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "notebooks/README.md"]


def python_lines(page):
    """The only block of Python of a page."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return code


class MyModel(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.Dict(
            query=nnx.Linear(8, 8, rngs=rngs),
            key=nnx.Linear(8, 8, rngs=rngs),
            value=nnx.Linear(8, 8, rngs=rngs),
        )
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        scores = self.attention.query(x) @ self.attention.key(x).T
        return self.head(jax.nn.softmax(scores) @ self.attention.value(x))


def names_for_a_reader():
    """What the lines take for granted: a model of the reader's, inputs and targets."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 8)), random.normal(size=(5, 2))
    return {"MyModel": MyModel, "x": x, "y": y, "print": lambda *_: None}


def test_python_lines_of_the_readme():
    names = names_for_a_reader()
    exec(python_lines("README.md"), names)
    assert type(names["merged"]) is MyModel
    assert type(names["merged"].attention.query) is nnx.Linear


def test_python_lines_by_hand():
    names = names_for_a_reader()
    exec(python_lines("docs/methods.md"), names)
    x, y = names["x"], names["y"]
    loss, frozen = names["loss"], names["frozen"]
    before = names["model"](x)
    assert loss(names["trainable"]) < np.mean((before - y) ** 2)
    assert type(names["merged"].attention.query) is nnx.Linear
    joined = names["lj"].join(names["structure"], names["trainable"], frozen)
    np.testing.assert_allclose(names["merged"](x), joined(x), rtol=2e-5, atol=2e-6)
    assert {"head/kernel", "attention/query/lora/a"} < set(names["trainable"])
    assert isinstance(names["tx"], optax.GradientTransformation)


def test_python_lines_on_sweeps_give_each_run_alone():
    names = names_for_a_reader()
    exec(python_lines("docs/sweeps.md"), names)
    x, y = names["x"], names["y"]
    lj, method = names["lj"], names["methods"][1]
    model = method.insert(names["base"], names["keys"][1])
    labels = method.labels(model)
    structure, trainable, frozen = lj.split(model, labels)
    adam = lj.optimizer({path: labels[path] for path in trainable}, optax.adamw(1e-2))
    state = adam.init(trainable)

    def loss(trainable):
        return jax.numpy.mean((lj.join(structure, trainable, frozen)(x) - y) ** 2)

    for _ in range(10):
        updates, state = adam.update(jax.grad(loss)(trainable), state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    assert trainable.keys() == names["alone"].keys()
    for path, value in trainable.items():  # ten updates of Adam in float32
        np.testing.assert_allclose(names["alone"][path], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_configs_and_links_exist(page):
    text = page.read_text()
    for path in re.findall(r"configs/[\w/]+\.py", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m ((?:experiments|benchmarks)[\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link


def test_pages_name_commands_and_configs():
    """The patterns above find something, and every command is on a page."""
    text = "".join(page.read_text() for page in PAGES)
    assert len(re.findall(r"configs/[\w/]+\.py", text)) > 40
    commands = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__", "cli"}
    commands |= {path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py")}
    assert {name for name in commands if f"experiments.{name}" not in text} == set()


def test_every_page_is_in_the_index_and_the_readme_is_short():
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
