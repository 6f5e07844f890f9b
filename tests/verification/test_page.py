"""The Python blocks of docs/any_model.md run as they stand, on a model as the page describes."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax as lj

PAGE = Path(__file__).parents[2] / "docs/any_model.md"


class Layer(nnx.Module):
    """Projections as layers, and experts as one bare parameter."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = nnx.Linear(8, 8, rngs=rngs)
        self.value = nnx.Linear(8, 8, rngs=rngs)
        self.experts = nnx.Param(0.3 * jax.random.normal(rngs.params(), (3, 8, 8)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.query(x) * jax.nn.sigmoid(self.value(x))
        return x + jnp.einsum("bti,eio->bto", x, self.experts[...]) / 3


class MyModel(nnx.Module):
    """A language model with a tied table that is read beside its layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(11, 8, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x) @ self.table.embedding[...].T


def test_blocks_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = jnp.asarray([[1, 2, 3, 4]])
    printed: list[object] = []
    names = {"MyModel": MyModel, "tokens": tokens, "targets": tokens + 1, "print": printed.append}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(code, names)
    assert "passed" in str(printed[0])
    base, adapted = names["base"], names["adapted"]
    assert not np.array_equal(adapted.head.kernel[...], base.head.kernel[...])  # it trained
    np.testing.assert_array_equal(adapted(tokens), lj.load("runs/nnx", base)(tokens))
    with lj.disabled(adapted):
        np.testing.assert_array_equal(names["reference"], adapted(tokens))
    np.testing.assert_array_equal(names["reference"], names["pretrained"](tokens))


def test_the_table_of_the_page_tells_a_tied_table_by_its_layer_from_one_by_its_parameter():
    tokens = jnp.asarray([[1, 2, 3, 4]])
    layer = lj.verify(MyModel(nnx.Rngs(0)), lj.lora("table", rank=2), tokens)
    assert [(f.check, f.path) for f in layer.failures] == [("merge", "table")]
    whole = lj.lora({"table/embedding": {"axes": "io"}}, rank=2)
    assert lj.verify(MyModel(nnx.Rngs(0)), whole, tokens).passed
