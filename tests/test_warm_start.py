"""Starting a run with the factors of another one: at the same rank, or at a larger one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax import warm_start
from lora_jax.adapters import Adapter
from lora_jax.data.batch import Inputs
from lora_jax.models.gpt2 import GPT2, GPT2Config

KEY = jax.random.key(0)
CONFIG = GPT2Config(8, 2, 2, vocab_size=11, n_positions=8)
FUSED = {"parts": ("q", "v"), "fused": ("q", "k", "v")}
TOKENS = jnp.arange(6, dtype=jnp.int32)


def method(rank, alpha=None, more=None, **settings):
    targets = {"qkv": {**FUSED}, "attention/output": {}, "up": {"rank": 2, **(more or {})},
               "embeddings/token": {"b_bias": False}}  # fmt: skip
    return lj.lora(targets, rank=rank, alpha=alpha, **settings)


def adapter_of(base, how, seed=0):
    """An adapter with random values."""
    model = how.insert(base, KEY)
    labels = how.labels(model)
    _, trainable, _ = lj.split(model, labels)
    draw = np.random.default_rng(seed)
    values = {p: draw.standard_normal(v.shape).astype(np.float32) for p, v in trainable.items()}
    for path in values:
        if path.endswith("magnitude"):
            values[path] = 1 + np.abs(values[path])
    labels = {path: labels[path] for path in values}
    return Adapter(how, labels, values, lj.fingerprint(lj.base_parameters(base)), {})


def run_of(base, how):
    model = how.insert(base, jax.random.key(5))
    labels = how.labels(model)
    structure, trainable, frozen = lj.split(model, labels)
    return model, labels, structure, trainable, frozen


def logits(model):
    tokens = TOKENS[None]
    batch = tokens, jnp.ones_like(tokens), tokens % CONFIG.n_positions, jnp.zeros_like(tokens)
    return model(Inputs(*batch), jnp.zeros_like(TOKENS), TOKENS)


@pytest.fixture(scope="module")
def base():
    return GPT2(CONFIG, rngs=nnx.Rngs(3))


CASES = {
    "plain": ({}, {}),
    "another alpha": ({"alpha": 6}, {"alpha": 16}),
    "another scaling": ({"alpha": 6}, {"alpha": 6, "scaling": "alpha/sqrt(r)"}),
    "dora": ({"magnitude": True}, {"magnitude": True}),
    "biases of b": ({"alpha": 6, "b_bias": True}, {"alpha": 16, "b_bias": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_larger_rank_starts_with_the_same_update_and_trains_whole(base, case):
    there, here = CASES[case]
    adapter = adapter_of(base, method(2, **there))
    how = method(5, more={"rank": 3}, **here)
    model, labels, structure, trainable, frozen = run_of(base, how)
    params = warm_start.started(adapter, trainable, labels, how, model)
    assert params.keys() == trainable.keys()
    expected = logits(lj.attach(base, adapter))
    found = logits(lj.join(structure, params, frozen))
    assert jnp.abs(found - expected).max() < 2e-6 * jnp.abs(expected).max()
    assert jnp.abs(logits(base) - expected).max() > 0.1 * jnp.abs(expected).max()
    for path, value in params.items():
        own = adapter.values[path]
        assert value.shape == trainable[path].shape
        if path.endswith("/a"):
            np.testing.assert_array_equal(value[..., : own.shape[-1]], own)
            np.testing.assert_array_equal(
                value[..., own.shape[-1] :], trainable[path][..., own.shape[-1] :]
            )
    grads = jax.grad(lambda p: jnp.sum(logits(lj.join(structure, p, frozen)) ** 2))(params)
    for path, value in params.items():
        if path.endswith("/b") and "embeddings" not in path:  # rows of b that were zero: A is not
            assert jnp.all(jnp.any(jnp.where(value == 0, grads[path], 0) != 0, axis=-1)
                           == jnp.any(value == 0, axis=-1)), path  # fmt: skip


def test_equal_ranks_are_taken_as_they_are(base):
    adapter = adapter_of(base, method(2, alpha=6))
    model, labels, _, trainable, _ = run_of(base, method(2, alpha=6))
    params = warm_start.started(adapter, trainable, labels, method(2, alpha=6), model)
    for path, value in params.items():
        np.testing.assert_array_equal(value, adapter.values[path])


REFUSED = {
    "smaller": (method(3), method(2), r"mine has rank 3 on .*, the method here 2.*reduce "
                r"--adapters=ADAPTER --rank=2"),
    "scale": (method(2, alpha=6), method(2, alpha=8), r"scale 3 in front of A B, the method here has 4"),
    "scale where the rank stays": (method(2, alpha=6), method(4, alpha=12),
                                   r"the scale 3 in front of A B, the method here has 6 \(.*up\)"),
    "layers": (lj.lora("up", rank=2), method(2), r"missing \["),
    "not LoRA": (lj.full(), method(2), r"'lora' does not fit"),
    "fewer layers": (lj.lora(["up", "down"], rank=2), lj.lora("up", rank=2), r"not in the model .*down.*"
                     r"targets, parts and cuts"),
    "a cut": (lj.lora(".*last_1/block/.*up", rank=2, cut=(1,)), lj.lora("up", rank=2), r"mine: .*missing"),
    "lookups only": (lj.lora("embeddings/token", rank=2, lookup_only=True),
                     lj.lora("embeddings/token", rank=4), r"with lookup_only=True, the method here with"),
    "lookups only, same rank": (lj.lora("embeddings/token", rank=2),
                                lj.lora("embeddings/token", rank=2, lookup_only=True), "lookup_only=False"),
    "other parts": (lj.lora({"qkv": FUSED}, rank=2),
                    lj.lora({"qkv": {**FUSED, "fused": ("v", "k", "q")}}, rank=2), "with fused="),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_start_a_run_is_refused(base, case):
    there, here, message = REFUSED[case]
    model, labels, _, trainable, _ = run_of(base, here)
    with pytest.raises(ValueError, match=message):
        warm_start.started(adapter_of(base, there), trainable, labels, here, model, "mine")


def test_another_shape_is_named(base):
    adapter = adapter_of(base, method(2))
    path = next(path for path in adapter.values if path.endswith("up/lora/a"))
    values = {**adapter.values, path: adapter.values[path][:, :3]}
    model, labels, _, trainable, _ = run_of(base, method(4, more={"rank": 3}))
    with pytest.raises(ValueError, match=r"up/lora/a has shape \(2, 3, 2\), the model needs"):
        warm_start.started(
            dataclasses.replace(adapter, values=values),
            trainable,
            labels,
            method(4, more={"rank": 3}),
            model,
        )
