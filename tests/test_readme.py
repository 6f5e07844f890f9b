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


def test_python_lines_on_sweeps_give_each_run_alone():
    (code,) = re.findall(
        r"```python\n(.*?)```", (README.parent / "docs/sweeps.md").read_text(), re.S
    )
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 8)), random.normal(size=(5, 2))
    names = {"MyModel": MyModel, "x": x, "y": y, "print": lambda *_: None}
    exec(code, names)
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
    assert trainable.keys() == names["own"].keys()
    for path, value in trainable.items():  # ten updates of Adam in float32
        np.testing.assert_allclose(names["own"][path], value, rtol=1e-4, atol=1e-5)


def test_commands_name_files_that_exist():
    text = README.read_text()
    for path in re.findall(r"configs/[\w/]+\.py", text):
        assert (README.parent / path).exists(), path
    for module in re.findall(r"python -m (experiments\.\w+)", text):
        assert (README.parent / (module.replace(".", "/") + ".py")).exists(), module
