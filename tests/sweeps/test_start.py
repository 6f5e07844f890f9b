"""Runs on a model of one's own: their start, and loops over runs beside vectorised ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.sweeps import padding
from lora_jax.sweeps.runs import RunValues, of_run
from lora_jax.sweeps.start import together
from lora_jax.sweeps.step import initial_states, make_runs_train_step

RANKS = (1, 4, 2)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(6, 5, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.first(x)))


@pytest.fixture(scope="module")
def runs():
    methods = [lj.lora("first", rank=rank, alpha=8, dropout=0.1, head="head/.*") for rank in RANKS]
    keys = jax.random.split(jax.random.key(0), 3)
    return together(Model(nnx.Rngs(0)), methods, [1e-2, 3e-2, 1e-3], keys)


def test_start_is_that_of_each_method(runs):
    keys = jax.random.split(jax.random.key(0), 3)
    for number, rank in enumerate(RANKS):
        method = lj.lora("first", rank=rank, alpha=8, head="head/.*")
        model = method.insert(Model(nnx.Rngs(0)), keys[number])
        _, trainable, frozen = lj.split(model, method.labels(model))
        params = runs.run(runs.trainable, number)
        assert params.keys() == trainable.keys() and runs.frozen.keys() == frozen.keys()
        for path, value in trainable.items():
            np.testing.assert_array_equal(params[path], value)
        assert runs.trainable["first/lora/a"].shape == (3, 6, 4)
        assert float(runs.values.scales["first/lora"][number]) == 8 / rank


def test_runs_with_capped_layers_are_those_alone():
    """`first` allows rank 5 at most, the head 2: the common method has room for that, and scale 1."""
    methods = [
        lj.lora(["first", "head"], rank=rank, alpha=8, too_large="cap") for rank in (1, 4, 7)
    ]
    base, x = Model(nnx.Rngs(0)), jnp.ones((3, 6))
    keys = jax.random.split(jax.random.key(0), 3)
    runs = together(base, methods, [1e-2] * 3, keys)
    assert {p: v.shape[1:] for p, v in runs.trainable.items() if p.endswith("/a")} == {
        "first/lora/a": (6, 5), "head/lora/a": (5, 2),
    }  # fmt: skip
    for number, method in enumerate(methods):
        model = method.insert(base, keys[number])
        structure, own, frozen = lj.split(model, method.labels(model))
        own = {path: leaf + 0.2 for path, leaf in own.items()}
        room = {path: leaf[number] for path, leaf in runs.trainable.items()}
        padded = padding.padded(own, padding.shapes_of(room))
        scales = {path: scale[number] for path, scale in runs.values.scales.items()}
        assert set(scales.values()) == {np.float32(8 / (1, 4, 7)[number])}
        together_out = lj.join(
            runs.structure, of_run(padded, RunValues(0.0, scales, {})), runs.frozen
        )(x)
        np.testing.assert_allclose(together_out, lj.join(structure, own, frozen)(x), rtol=1e-5)


def test_numbers_of_arguments_that_differ(runs):
    with pytest.raises(ValueError, match="argument 2 is longer"):
        together(Model(nnx.Rngs(0)), [lj.lora("first", rank=2)], [1e-2, 1e-2], [jax.random.key(0)])


@pytest.mark.parametrize("own_batches", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_loop_over_runs_is_all_at_once(runs, at_once, own_batches):
    random = np.random.default_rng(0)
    lead = (3,) if own_batches else ()
    batch = random.normal(size=(*lead, 7, 6)), random.normal(size=(*lead, 7, 2))
    labels = {path: runs.labels[path] for path in runs.trainable}
    keys = jax.random.split(jax.random.key(1), 3)

    def adam(rate):
        return lj.optimizer(labels, optax.adamw(rate))

    def loss(model, batch, key):
        return jnp.mean((model(batch[0]) - batch[1]) ** 2)

    results = []
    for runs_at_once in (0, at_once):
        step = make_runs_train_step(
            runs.structure, loss, adam, own_batches=own_batches, at_once=runs_at_once
        )
        trainable = jax.tree.map(jnp.asarray, runs.trainable)
        state = initial_states(adam)(trainable, runs.values.learning_rate)
        for number in range(3):
            trainable, state, metrics = step(
                trainable, state, runs.values, runs.frozen, batch, keys, number
            )
        results.append((trainable, metrics))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # float32, products batched
