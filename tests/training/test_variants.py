"""The trainer does what a method asks of it: learning rates of B, starts from gradients."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.low_rank import starts
from lora_jax.training import ArrayBatches, Trainer, TrainSettings

random = np.random.default_rng(0)
X = random.normal(size=(48, 6)).astype(np.float32)
Y = random.normal(size=(48, 5)).astype(np.float32)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(6, 8, rngs=rngs)
        self.outer = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.outer(jnp.tanh(self.inner(x)))


def loss(model, batch, key):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def fitted(method, folder, **settings):
    """A trainer, and its adapter after training."""
    defaults = {"epochs": 1, "learning_rate": 1e-3, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    trainer = Trainer(Model(nnx.Rngs(0)), method, TrainSettings(**(defaults | settings)))
    trainer.fit(ArrayBatches({"x": X, "y": Y}, batch_size=8), loss, folder)
    return trainer, lora_jax.load_adapter(folder)


def assert_same_vectors(one, other):
    """Equal columns, whatever their signs, which no decomposition fixes."""
    signs = np.sign(np.sum(np.asarray(one) * np.asarray(other), axis=0))
    np.testing.assert_allclose(one, other * signs, atol=1e-4)


def test_b_learns_faster_by_the_rate_of_the_method(tmp_path):
    one_step = {"accumulate": 6}  # of all six batches; Adam's first step has the size of the rate
    found = {
        rate: fitted(lora_jax.lora("inner", rank=2, b_rate=rate), tmp_path / str(rate), **one_step)
        for rate in (1, 16)
    }
    start = found[1][0].trainable
    moved = {
        rate: {p: v - np.asarray(start[p]) for p, v in adapter.values.items()}
        for rate, (_, adapter) in found.items()
    }
    np.testing.assert_allclose(moved[16]["inner/lora/b"], 16 * moved[1]["inner/lora/b"], rtol=1e-5)
    np.testing.assert_allclose(moved[16]["inner/lora/a"], moved[1]["inner/lora/a"], atol=1e-7)
    assert np.abs(moved[1]["inner/lora/b"]).max() > 5e-4


def test_lora_ga_starts_from_the_mean_gradient_of_the_first_batches(tmp_path):
    method = lora_jax.lora("inner", rank=2, init="lora_ga", gamma=4.0)
    trainer, adapter = fitted(method, tmp_path / "run", gradient_batches=3)
    base = Model(nnx.Rngs(0))
    batches = list(itertools.islice(ArrayBatches({"x": X, "y": Y}, batch_size=8).epoch(0), 3))
    gradients = [
        nnx.grad(lambda m, b=batch: loss(m, b, None))(base).inner.kernel[...] for batch in batches
    ]
    gradient = np.mean(np.asarray(gradients, np.float64), axis=0)
    a, b = starts.lora_ga(jnp.asarray(gradient, jnp.float32), 2, 4.0)
    assert_same_vectors(a, adapter.state["inner/lora/a_start"])
    assert_same_vectors(b.T, adapter.state["inner/lora/b_start"].T)
    assert np.abs(adapter.values["inner/lora/a"] - adapter.state["inner/lora/a_start"]).max() > 1e-4
    again = trainer.fit(ArrayBatches({"x": X, "y": Y}, batch_size=8), loss, tmp_path / "run")
    x = jnp.asarray(X[:4])
    np.testing.assert_array_equal(
        trainer.model(again.best)(x), lora_jax.load(tmp_path / "run", base)(x)
    )
    by_hand = lora_jax.start_from_gradients(
        method.insert(base, jax.random.key(0)),
        lambda model, batch: loss(model, batch, None),
        batches,
    )
    assert_same_vectors(a, by_hand.inner.lora.a_start[...])
    assert_same_vectors(b.T, by_hand.inner.lora.b_start[...].T)
    np.testing.assert_array_equal(by_hand(x), base(x))


def test_a_run_that_starts_from_gradients_goes_on_from_another_ones_adapter(tmp_path):
    method = lora_jax.lora("inner", rank=2, init="lora_ga")
    _, first = fitted(method, tmp_path / "first")
    _, second = fitted(
        method, tmp_path / "second", init_adapter=str(tmp_path / "first"), learning_rate=0.0
    )
    for path, value in first.state.items():
        np.testing.assert_array_equal(second.state[path], value)
    for path, value in first.values.items():
        np.testing.assert_array_equal(second.values[path], value)
    other = lora_jax.lora("inner", rank=2, init="pissa")
    with pytest.raises(ValueError, match="of its own method only"):
        fitted(other, tmp_path / "third", init_adapter=str(tmp_path / "first"))


def test_what_cannot_start_from_gradients_is_told():
    base = Model(nnx.Rngs(0))
    plain = lora_jax.lora("inner", rank=2).insert(base, jax.random.key(0))
    with pytest.raises(ValueError, match="no update of this model has init='lora_ga'"):
        lora_jax.start_from_gradients(plain, loss, [])
    method = lora_jax.lora("inner", rank=2, init="lora_ga")
    waiting = method.insert(base, jax.random.key(0))
    with pytest.raises(ValueError, match="no batch"):
        lora_jax.start_from_gradients(waiting, loss, [])
    with pytest.raises(ValueError, match="not finite"):
        lora_jax.start_from_gradients(
            waiting, lambda m, b: jnp.sum(m(b)) * jnp.nan, [jnp.ones((2, 6))]
        )
    with pytest.raises(ValueError, match="twice as many singular vectors"):
        lora_jax.lora("inner", rank=4, init="lora_ga").insert(base, jax.random.key(0))
