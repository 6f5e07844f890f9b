"""Adapts, trains, saves, loads and merges a small model: what test_package.py runs on the wheel.

    python adapt_small_model.py FOLDER

Prints JSON: where lora_jax lies, its version, and the modules of it that `import lora_jax` loads.
"""

import json
import pathlib
import sys

import lora_jax as lj

# Before anything else is imported: the modules that `import lora_jax` brings.
LOADED = sorted(name for name in sys.modules if name.split(".")[0] == "lora_jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lora_jax.adapters import base_parameters, fingerprint


class Model(nnx.Module):
    """A hidden layer and a head."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x)))


def main(folder):
    """Every step that a reader of the README takes."""
    x = jax.random.normal(jax.random.key(1), (16, 6))
    y = jax.random.normal(jax.random.key(2), (16, 2))
    base = Model(nnx.Rngs(0))
    method = lj.lora("hidden", rank=2, alpha=4, head=r"head/.*")
    model = method.insert(base, jax.random.key(0))
    np.testing.assert_array_equal(model(x), base(x))

    labels = method.labels(model)
    structure, trainable, frozen = lj.split(model, labels)
    tx = lj.optimizer({path: labels[path] for path in trainable}, optax.adamw(1e-2))
    state = tx.init(trainable)

    def loss(trainable, frozen):
        return jnp.mean((lj.join(structure, trainable, frozen)(x) - y) ** 2)

    @jax.jit
    def step(trainable, state, frozen):
        value, gradients = jax.value_and_grad(loss)(trainable, frozen)
        updates, state = tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    losses = []
    for _ in range(5):
        trainable, state, value = step(trainable, state, frozen)
        losses.append(float(value))
    assert losses[-1] < losses[0], losses

    trained = lj.join(structure, trainable, frozen)
    identity = fingerprint(base_parameters(base, r"head/.*"))
    lj.save_adapter(folder, trainable, labels, method, base=identity)
    loaded = lj.attach(Model(nnx.Rngs(0)), lj.load_adapter(folder), head=r"head/.*")
    np.testing.assert_array_equal(loaded(x), trained(x))
    merged = lj.merge(trained)
    assert type(merged.hidden) is nnx.Linear
    np.testing.assert_allclose(merged(x), trained(x), rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    print(json.dumps({"file": lj.__file__, "version": lj.__version__, "loaded": LOADED}))
