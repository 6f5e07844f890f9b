"""What type checkers know of a user's program: mypy reads this file with the rest, nothing runs it.

Every model that comes out has the class of the one that went in, so that its call and its layers are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax as lj
from lora_jax.adapter_files import Adapter
from lora_jax.training import ArrayBatches, FitResult, Trainer, TrainSettings


class MyModel(nnx.Module):
    """A user's."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.query(x))


def adapted_and_back(base: MyModel, x: jax.Array) -> None:
    """One adapter, by hand."""
    method = lj.lora("query", rank=2)
    assert_type(method, lj.Method)
    adapted = method.insert(base, jax.random.key(0))
    assert_type(adapted, MyModel)
    structure, trainable, frozen = lj.split(adapted, method.labels(adapted))
    assert_type(trainable, dict[str, jax.Array])
    assert_type(lj.join(structure, trainable, frozen), MyModel)
    assert_type(lj.merge(adapted), MyModel)
    assert_type(lj.strip(adapted), MyModel)
    assert_type(lj.to_lora(adapted, method), tuple[MyModel, lj.Method])
    with lj.disabled(adapted) as reference:
        assert_type(reference(x), jax.Array)
    packed = lj.quantise(base)
    assert_type(packed, MyModel)
    assert_type(lj.dequantise(packed), MyModel)
    assert_type(lj.merge_packed(method.insert(packed, jax.random.key(0)))[0], MyModel)
    lj.save("runs/mine", adapted, method, base)
    assert_type(lj.load("runs/mine", base), MyModel)
    assert_type(lj.load_adapter("runs/mine"), Adapter)
    assert_type(lj.attach(base, lj.load_adapter("runs/mine")), MyModel)
    assert_type(lj.verify(base, method, x), lj.Verification)


def several(base: MyModel, x: jax.Array) -> None:
    """Sets and pools."""
    adapters = lj.AdapterSet(base)
    assert_type(adapters.model({"a": 1.0, "b": 0.5}), MyModel)
    pool = lj.AdapterPool(base, [lj.lora("query", rank=2)])

    def answer(model: MyModel, x: jax.Array) -> jax.Array:
        return model(x)

    assert_type(pool.compiled(answer)(["a", None], x), jax.Array)


def trained(base: MyModel) -> None:
    """The trainer takes a loss of the user's class, and gives that class back."""

    def loss(model: MyModel, batch: Any, key: jax.Array | None) -> jax.Array:
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    def evaluate(model: MyModel) -> Mapping[str, float]:
        return {"mean": float(model(jnp.ones((1, 4))).mean())}

    trainer = Trainer(base, lj.lora("query", rank=2), TrainSettings(epochs=1))
    x = np.ones((8, 4), np.float32)
    result = trainer.fit(ArrayBatches({"x": x, "y": x}, 4), loss, "runs/mine", evaluate=evaluate)
    assert_type(result, FitResult)
    assert_type(trainer.model(result.best), MyModel)
