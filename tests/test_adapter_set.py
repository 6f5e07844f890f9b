"""Several adapters by name on one base: choosing, switching, summing, training one, saving each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 8)), jnp.float32)
ALL = lora_jax.lora(["first", "second"], rank=2, alpha=4)
FIRST = lora_jax.lora("first", rank=3, alpha=6)
KEY = jax.random.key(0)


class Model(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(6, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def randomised(adapters, name, seed):
    """Gives an adapter random factors."""
    model = adapters.model(name)
    random = np.random.default_rng(seed)
    for layer in adapted_layers(model).values():
        for side in (layer.lora.a, layer.lora.b):
            side[...] = jnp.asarray(random.standard_normal(side.shape), jnp.float32)
    adapters.take(name, model)


@pytest.fixture
def adapters():
    made = lora_jax.AdapterSet(Model())
    for seed, (name, method) in enumerate((("a", ALL), ("b", ALL), ("c", FIRST))):
        made.create(name, method, KEY)
        randomised(made, name, seed)
    return made


def kernels(adapter):
    """The adapted kernels in float64, from the definition."""
    base, result = Model(), {}
    for name in ("first", "second"):
        result[name] = np.asarray(getattr(base, name).kernel[...], np.float64)
        if f"{name}/lora/a" in adapter.values:
            a, b = (adapter.values[f"{name}/lora/{side}"].astype(np.float64) for side in "ab")
            result[name] = result[name] + 2 * a @ b
    return result


def outputs(first, second):
    return np.tanh(np.asarray(X, np.float64) @ first) @ second


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_each_by_its_name(adapters, name):
    expected = outputs(**kernels(adapters[name]))
    np.testing.assert_allclose(adapters.model(name)(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "weights", [{"a": 1.0, "c": 1.0}, {"a": 0.5, "b": -2.0, "c": 1.5}, {"b": 0.3}]
)
def test_weighted_sums_are_exact(adapters, weights):
    base = {
        name: np.asarray(getattr(Model(), name).kernel[...], np.float64)
        for name in ("first", "second")
    }
    whole = {
        layer: kernel + sum(w * (kernels(adapters[n])[layer] - kernel) for n, w in weights.items())
        for layer, kernel in base.items()
    }
    np.testing.assert_allclose(adapters.model(weights)(X), outputs(**whole), rtol=1e-4, atol=1e-3)


def test_none_is_the_base_and_arrays_are_shared(adapters):
    assert adapters.model() is adapters.base
    model = adapters.model("a")
    for name in ("first", "second"):
        own, base = (getattr(m, name).kernel.get_raw_value() for m in (model, adapters.base))
        assert own is base


def test_many_switches_touch_factors_only_and_compile_once(adapters):
    compiled = []

    @jax.jit
    def run(state):
        compiled.append(1)
        return nnx.merge(graphdef, state)(X)

    model = adapters.model("a")
    graphdef, _ = nnx.split(model)
    kernel = model.first.kernel.get_raw_value()
    expected = {name: np.asarray(run(nnx.state(adapters.model(name)))) for name in "ab"}
    for _ in range(100):
        for name in "ba":
            adapters.switch(model, name)
    np.testing.assert_array_equal(run(nnx.state(model)), expected["a"])
    adapters.switch(model, "b")
    np.testing.assert_array_equal(run(nnx.state(model)), expected["b"])
    assert nnx.split(model)[0] == graphdef and len(compiled) == 1
    assert model.first.kernel.get_raw_value() is kernel
    np.testing.assert_array_equal(adapters.base(X), Model()(X))


def test_one_is_trained_while_the_others_stay(adapters):
    before = {
        name: {p: v.copy() for p, v in adapters[name].values.items()} for name in adapters.names
    }
    model = adapters.model("a")
    labels = ALL.labels(model)
    structure, trainable, frozen = lora_jax.split(model, labels)
    gradients = jax.grad(lambda t: jnp.mean(lora_jax.join(structure, t, frozen)(X) ** 2))(trainable)
    updates, _ = (tx := optax.sgd(0.1)).update(gradients, tx.init(trainable))
    adapters.take("a", lora_jax.join(structure, optax.apply_updates(trainable, updates), frozen))
    for name in "bc":
        for path, value in adapters[name].values.items():
            np.testing.assert_array_equal(value, before[name][path])
    for path, gradient in gradients.items():
        np.testing.assert_allclose(
            adapters["a"].values[path], before["a"][path] - 0.1 * np.asarray(gradient), rtol=1e-6
        )


def test_each_is_saved_and_loaded_alone(adapters, tmp_path):
    folder = adapters.save("b", tmp_path / "b")
    again = lora_jax.AdapterSet(Model())
    again.load("other", folder)
    np.testing.assert_array_equal(again.model("other")(X), adapters.model("b")(X))
    assert again["other"].values.keys() == adapters["b"].values.keys()


def test_what_is_wrong_is_named(adapters):
    for call, says in (
        (lambda: adapters.create("a", ALL, KEY), "there is an adapter 'a' already"),
        (lambda: adapters.model("d"), "there is no adapter 'd'; there are a, b, c"),
        (lambda: adapters.model({"a": 1.0, "d": 1.0}), "there is no adapter 'd'"),
        (lambda: adapters.remove("d"), "there is no adapter 'd'"),
        (
            lambda: adapters.switch(adapters.model("a"), "c"),
            r"another method than adapter 'c'.*model\('c'\)",
        ),
        (lambda: adapters.take("c", adapters.model("a")), "another method than adapter 'c'"),
        (lambda: lora_jax.AdapterSet(adapters.model("a")), "must not be adapted"),
    ):
        with pytest.raises(InputError, match=says):
            call()
    other = Model()
    other.first.kernel[...] += 1
    with pytest.raises(InputError, match="adapter 'x' was trained on another base"):
        lora_jax.AdapterSet(other).add("x", adapters["a"])
    adapters.remove("b")
    assert adapters.names == ["a", "c"]


def test_new_values_have_no_old_scores(adapters):
    notes = {"metrics": {"loss": 1.0}, "epoch": 3, "seed": 1, "model": "mine"}
    adapters.add("rated", dataclasses.replace(adapters["a"], notes=notes))
    adapters.take("rated", adapters.model("rated"))
    assert adapters["rated"].notes == {"model": "mine"}
    assert repr(adapters) == "AdapterSet(Model: a, b, c and 1 more)"


def test_an_adapter_of_a_model_with_a_head_is_of_another_one(adapters):
    method = lora_jax.lora("first", rank=1, head="head/.*")
    other = dataclasses.replace(adapters["c"], method=method, notes={"model": "roberta"})
    with pytest.raises(
        InputError, match=r"'other' has a head .* and this Model has none.*\(roberta\)"
    ):
        adapters.add("other", other)


@pytest.mark.wrong_types
@pytest.mark.parametrize("chosen", [["a"], 5])
def test_what_is_no_choice(adapters, chosen):
    with pytest.raises(TypeError, match="chosen must be the name of an adapter, weights by name"):
        adapters.model(chosen)
