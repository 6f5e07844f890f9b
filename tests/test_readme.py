"""The README's Python lines run as they stand, on a model of the reader's own."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

README = Path(__file__).parents[1] / "README.md"


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


def test_python_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 8)), random.normal(size=(5, 2))
    names = {"MyModel": MyModel, "x": x, "y": y, "print": lambda *_: None}
    exec(code, names)
    loss, frozen = names["loss"], names["frozen"]
    before = names["model"](x)
    assert loss(names["trainable"]) < np.mean((before - y) ** 2)
    assert type(names["merged"].attention.query) is nnx.Linear
    joined = names["lj"].join(names["structure"], names["trainable"], frozen)
    np.testing.assert_allclose(names["merged"](x), joined(x), rtol=2e-5, atol=2e-6)
    assert {"head/kernel", "attention/query/lora/a"} < set(names["trainable"])
    assert isinstance(names["tx"], optax.GradientTransformation)


def test_commands_name_files_that_exist():
    text = README.read_text()
    for path in re.findall(r"configs/[\w/]+\.py", text):
        assert (README.parent / path).exists(), path
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        assert (README.parent / (module.replace(".", "/") + ".py")).exists(), module
