"""What users of the methods after LoRA may do without losing anything in silence."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax
from lora_jax.training.adapted_model import AdaptedModel

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)), jnp.float32)


class Model(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(12, 10, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(10, 6, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def loss(model, batch):
    return jnp.mean(model(batch) ** 2)


def trained(model):
    """Other values in all that trains."""
    random = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        variable[...] = variable[...] + 0.3 * random.normal(size=variable.shape)
    return model


def of(init="kaiming", **arguments):
    return lora_jax.lora("first", rank=2, init=init, **arguments)


@pytest.mark.parametrize("start", ["kaiming", "gaussian"])
def test_a_frozen_a_does_not_depend_on_settings_of_random_numbers(start, tmp_path):
    base, method = Model(), of(start, gradient="lora_fa")
    with jax.default_prng_impl("rbg"):
        adapted = trained(method.insert(base, jax.random.key(3)))
        lora_jax.save(tmp_path, adapted, method, base)
    np.testing.assert_array_equal(lora_jax.load(tmp_path, base)(X), adapted(X))
    a = np.asarray(
        lora_jax.lora("first", rank=10, init=start, gradient="lora_fa", std=0.1)
        .insert(base, jax.random.key(0)).first.lora.a[...]
    )  # fmt: skip
    size = {"kaiming": 1 / np.sqrt(3 * 12), "gaussian": 0.1}[start]
    assert np.std(a) == pytest.approx(size, rel=0.15) and abs(np.mean(a)) < 0.3 * size


@pytest.mark.parametrize("init", ["lora_ga", "pissa"])
def test_a_set_of_adapters_keeps_the_start(init, tmp_path):
    adapters = lora_jax.AdapterSet(Model())
    adapters.create("a", of(init), jax.random.key(5))
    model = adapters.model("a")
    if init == "lora_ga":
        model = lora_jax.start_from_gradients(model, loss, [X])
    expected = trained(model)(X)
    adapters.take("a", model)
    np.testing.assert_array_equal(adapters.model("a")(X), expected)
    adapters.save("a", tmp_path)
    loaded = lora_jax.load_adapter(tmp_path)
    assert set(loaded.state) == {"first/lora/a_start", "first/lora/b_start"}
    np.testing.assert_array_equal(lora_jax.load(tmp_path, Model())(X), expected)
    with pytest.raises(ValueError, match=r"missing \['first/lora/a_start', 'first/lora/b_start'\]"):
        lora_jax.attach(Model(), dataclasses.replace(loaded, state={}))


def test_switching_takes_other_frozen_factors_away_again(tmp_path):
    base, method = Model(), of(gradient="lora_fa")
    adapters = lora_jax.AdapterSet(base)
    for name in ("own", "seeded"):
        model = trained(method.insert(base, jax.random.key(0)))
        if name == "own":
            model.first.lora.a[...] = 2 * model.first.lora.a[...]
        lora_jax.save(tmp_path / name, model, method, base)
        adapters.load(name, tmp_path / name)
    model, outputs = adapters.model("own"), {}
    for name in ("seeded", "own", "seeded"):
        adapters.switch(model, name)
        outputs[name] = np.asarray(model(X))
        np.testing.assert_array_equal(outputs[name], adapters.model(name)(X))
    assert np.abs(outputs["own"] - outputs["seeded"]).max() > 0.05


@pytest.mark.parametrize("rule", ["lora_fa", "lora_pro"])
def test_dependent_factors_stay_finite_and_are_never_changed_forwards(rule):
    base = Model()
    adapted, plain = (m.insert(base, jax.random.key(0)) for m in (of(gradient=rule), of()))
    row = jnp.ones((1, 10))
    for model in (adapted, plain):  # both columns of A, and both rows of B, are the same
        model.first.lora.a[...] = jnp.concatenate([jnp.arange(12.0)[:, None]] * 2, axis=1)
        model.first.lora.b[...] = 3 * jnp.concatenate([row, row])
    np.testing.assert_array_equal(adapted(X), plain(X))
    np.testing.assert_array_equal(
        lora_jax.merge(adapted).first.kernel[...], lora_jax.merge(plain).first.kernel[...]
    )
    found = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted, X)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    half = method_in(jnp.bfloat16, of(gradient=rule))
    gradients = jax.tree.leaves(
        nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(half, X.astype(jnp.bfloat16))
    )
    assert all(bool(jnp.isfinite(leaf.astype(jnp.float32)).all()) for leaf in gradients)
    with pytest.raises(TypeError, match="forward-mode"):
        graph, state = nnx.split(adapted)
        jax.jvp(lambda s: nnx.merge(graph, s)(X), (state,), (state,))


def method_in(dtype, method):
    adapted = trained(method.insert(Model(), jax.random.key(0)))
    state = jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(adapted))
    nnx.update(adapted, state)
    return adapted


def test_conversion_keeps_heads_and_biases_of_every_part(tmp_path):
    method = of("pissa", bias="lora_only") + lora_jax.lora("second", rank=2, bias="lora_only")
    base = Model()
    adapted = method.insert(base, jax.random.key(0))
    trained(adapted)
    adapted.first.bias[...] = adapted.first.bias[...] + 1
    adapted.second.bias[...] = adapted.second.bias[...] - 1
    plain, as_lora = lora_jax.to_lora(adapted, method)
    np.testing.assert_allclose(plain(X), adapted(X), atol=1e-5)
    lora_jax.save(tmp_path, plain, as_lora, base)
    np.testing.assert_array_equal(lora_jax.load(tmp_path, base)(X), plain(X))


def test_b_of_a_bare_parameter_learns_faster_too():
    class Bare(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((4, 3)))
            self.table = nnx.Embed(5, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return x @ self.w[...]

    method = lora_jax.lora({"w": {"axes": "io"}, "table": {}}, rank=2, b_rate=16)
    adapted = method.insert(Bare(), jax.random.key(0))

    tx = method.around(adapted)(optax.sgd(1.0))
    params = lora_jax.split(adapted, method.labels(adapted))[1]
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    sizes = {path: float(jnp.abs(u).max()) for path, u in updates.items()}
    assert sizes == {
        "lora/w/a": 1.0, "lora/w/b": 16.0, "table/lora/a": 1.0, "table/lora/b": 1.0,
    }  # fmt: skip
    text = str(method.summary(adapted))
    assert text.count("B learns 16 times as fast") == 1  # not of the table


def test_equal_methods_have_one_hash():
    first, second = (lora_jax.lora({"first": {"rank": 3}}, init="pissa") for _ in range(2))
    assert first == second and hash(first) == hash(second) and len({first, second, of()}) == 2


def test_losses_and_batches_of_a_start_are_checked():
    waiting = of("lora_ga").insert(Model(), jax.random.key(0))
    with pytest.raises(ValueError, match=r"the loss must be one number, and it is \(5, 6\)"):
        lora_jax.start_from_gradients(waiting, lambda model, batch: model(batch), [X])
    with pytest.raises(ValueError, match="the loss must be one number, and it is tuple"):
        lora_jax.start_from_gradients(waiting, lambda m, b: (jnp.sum(m(b)), 0), [X])
    with pytest.raises(ValueError, match="batches must be several"):
        lora_jax.start_from_gradients(waiting, loss, X)


def test_a_shared_base_is_the_base_alone():
    first = AdaptedModel(Model(), lora_jax.vera(["first", "second"], rank=4, seed=0))
    second = AdaptedModel(
        Model(), lora_jax.vera(["first", "second"], rank=4, seed=1), share_frozen_with=first
    )
    path = "first/lora/shared_a"
    assert np.abs(second.frozen[path] - first.frozen[path]).max() > 0.1
    assert second.frozen["first/kernel"] is first.frozen["first/kernel"]
    AdaptedModel(Model(), of("pissa"), share_frozen_with=AdaptedModel(Model(), of()))


def test_a_second_start_a_weight_without_rank_and_small_layers_are_told():
    method = of("lora_ga")
    model = trained(
        lora_jax.start_from_gradients(method.insert(Model(), jax.random.key(0)), loss, [X])
    )
    with pytest.raises(ValueError, match="first is trained already"):
        lora_jax.start_from_gradients(model, loss, [X])
    base = Model()
    base.first.kernel[...] = jnp.zeros((12, 10))
    with pytest.raises(ValueError, match=r"the weight of first has a rank below 2"):
        of("pissa").insert(base, jax.random.key(0))
    every = lora_jax.lora("all-linear", rank=4, init="lora_ga")
    adapted = every.insert(Model(), jax.random.key(0))
    assert "twice as many singular vectors as the rank, 4" in str(every.summary(adapted))
    capped = lora_jax.lora("second", rank=4, init="lora_ga", too_large="cap")
    assert capped.insert(Model(), jax.random.key(0)).second.lora.rank == 3
