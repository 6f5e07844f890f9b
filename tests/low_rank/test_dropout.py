"""Dropout on the low-rank branch: explicit keys, rates of runs, nothing of it when merged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.dropout import dropout
from lora_jax.low_rank import layers, seeding
from lora_jax.low_rank.settings import LoRASettings
from tests.low_rank.layer_cases import (
    CASES,
    adapted_copy,
    exact,
    key,
    linear,
    random_input,
    randomise,
)

# --- Dropout --------------------------------------------------------------------------------------


def pass_through(rate, size=64, stack=0, **arguments):
    """A Linear whose base is zero and whose branch is the identity: it shows the dropped input."""
    make = linear(size, size * max(1, len(arguments.get("fused", ()))))
    layer = (nnx.split_rngs(splits=stack)(nnx.vmap(make)) if stack else make)(nnx.Rngs(0))
    layers.adapt(layer, LoRASettings(size, float(size), dropout=rate, **arguments), key(0))
    for _, variable in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        variable[...] = jnp.zeros_like(variable[...])
    for _, variable in nnx.to_flat_state(nnx.state(layer, nnx.LoRAParam)):
        variable[...] = jnp.broadcast_to(jnp.eye(size), variable.shape)
    return layer


def seeded(layer, seed):
    copy = nnx.clone(layer)
    seeding.seed_dropout(copy, jax.random.key(seed))
    return copy


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_the_expected_share_and_size(rate):
    y = np.asarray(seeded(pass_through(rate), 1)(jnp.ones((128, 64))))
    assert set(np.round(np.unique(y), 4)) == {0, np.float32(round(1 / (1 - rate), 4))}
    # 8192 values: the share has a standard deviation below 0.0056.
    assert np.mean(y == 0) == pytest.approx(rate, abs=0.025)


def test_no_key_means_no_dropout():
    layer, x = pass_through(0.5), random_input((4, 64))
    np.testing.assert_allclose(layer(x), x, rtol=1e-6)
    seeded(layer, 1)  # seeding a copy leaves the layer as it is
    np.testing.assert_array_equal(layer(x), layer(x))
    np.testing.assert_allclose(layer(x), x, rtol=1e-6)


def test_dropout_is_on_the_branch_only():
    base = linear(16, 8)(nnx.Rngs(0))
    layer = seeded(adapted_copy(base, rank=4, dropout=0.5), 1)
    x = random_input((4, 16))
    np.testing.assert_array_equal(layer(x), base(x))  # B is zero: what is left is the base


def test_dropout_is_a_function_of_the_key():
    layer, x = pass_through(0.5), jnp.ones((4, 64))
    np.testing.assert_array_equal(seeded(layer, 1)(x), seeded(layer, 1)(x))
    assert np.any(seeded(layer, 1)(x) != seeded(layer, 2)(x))
    again = seeded(seeded(layer, 2), 1)  # a new key replaces the old one
    np.testing.assert_array_equal(again(x), seeded(layer, 1)(x))


def test_dropout_leaves_parameters_and_labels_as_they_are():
    layer = seeded(pass_through(0.5), 1)
    assert sorted(lora_jax.parameters(layer)) == ["bias", "kernel", "lora/a", "lora/b"]


def test_mean_over_dropout_keys_is_the_branch_without_dropout():
    layer, x = pass_through(0.25), random_input((2, 64))
    graphdef, state = nnx.split(layer)

    def run(one_key):
        model = nnx.merge(graphdef, state)
        seeding.seed_dropout(model, one_key)
        return model(x)

    mean = jax.jit(lambda keys: jax.vmap(run)(keys).mean(0))(
        jax.random.split(jax.random.key(3), 4096)
    )
    # One value has the standard deviation |x| sqrt(1/3); over 4096 keys |x| * 0.009, 5 of those.
    np.testing.assert_allclose(mean, x, rtol=0.05)


def test_layers_of_a_stack_drop_differently():
    layer = seeded(pass_through(0.5, stack=3), 1)
    graphdef, state = nnx.split(layer)
    x = jnp.ones((4, 64))
    _, y = jax.lax.scan(lambda c, s: (c, nnx.merge(graphdef, s)(x)), None, state)
    for i in range(3):
        assert np.mean(y[i] == 0) == pytest.approx(0.5, abs=0.15)  # 256 values, 5 sigma
        # Independent masks agree on half of the 256 places; equal ones would on all.
        assert np.mean(y[i] == y[i - 1]) == pytest.approx(0.5, abs=0.15)


def test_parts_and_layers_drop_differently():
    layer = seeded(pass_through(0.5, fused=("q", "k", "v"), parts=("q", "v")), 1)
    q, k, v = np.split(np.asarray(layer(jnp.ones((4, 64)))), 3, axis=-1)
    assert not k.any()
    assert np.mean(q == v) == pytest.approx(0.5, abs=0.15)

    class Two(nnx.Module):
        def __init__(self):
            self.one, self.two = pass_through(0.5), pass_through(0.5)

    model = seeded(Two(), 1)
    one, two = model.one(jnp.ones((4, 64))), model.two(jnp.ones((4, 64)))
    assert np.mean(one == two) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    "name", ["general, from heads", "einsum, heads", "conv 2D, groups", "embed"]
)
def test_dropout_works_for_every_kind_of_layer(name):
    """An embedding's branch has indices as its input: nothing is dropped there."""
    make, shape, rank = CASES[name]
    layer = adapted_copy(make(nnx.Rngs(0)), rank=rank, dropout=0.5)
    randomise(layer.lora, 1)
    x = random_input(shape, 10 if name == "embed" else None)
    dropped = seeded(layer, 1)(x)
    assert np.all(np.isfinite(dropped))
    assert np.array_equal(dropped, layer(x)) == (name == "embed")


def test_merge_ignores_dropout():
    layer = pass_through(0.5)
    merged, also = lora_jax.merge(layer), lora_jax.merge(seeded(layer, 1))
    np.testing.assert_array_equal(merged.kernel[...], np.eye(64, dtype=np.float32))
    np.testing.assert_array_equal(also.kernel[...], merged.kernel[...])
    assert nnx.graphdef(also) == nnx.graphdef(linear(64, 64)(nnx.Rngs(0)))


# --- Dropout rates of runs ------------------------------------------------------------------------

RATES = [0.0, 0.1, 0.5, 0.8, 0.9]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_traced_rate_drops_as_the_same_number(dtype):
    x = random_input((5, 33)).astype(dtype)
    with_array = jax.jit(dropout)
    for rate in RATES:
        expected = jax.jit(functools.partial(dropout, rate=rate))(x, key=key(3))
        found = with_array(x, jnp.float32(rate), key(3))
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_array_equal(exact(found), exact(expected), err_msg=str(rate))
    assert dropout(x, jnp.float32(0.5), None) is x  # no key, no dropout


def three_layers(*rates):
    """A Linear, a fused one and a stack."""

    class Three(nnx.Module):
        def __init__(self):
            fused = {"fused": ("q", "k", "v"), "parts": ("q", "v")}
            self.one = pass_through(rates[0], size=8)
            self.two = pass_through(rates[1], size=8, **fused)
            self.three = pass_through(rates[2], size=8, stack=2)

        def __call__(self, x):
            graphdef, state = nnx.split(self.three)
            stacked = jax.lax.scan(lambda c, s: (c, nnx.merge(graphdef, s)(x)), None, state)[1]
            return self.one(x), self.two(x), stacked

    return Three()


PATHS = ["one/lora", "three/lora", "two/lora/q", "two/lora/v"]


def test_factor_pairs_are_named_as_their_leaves_are():
    model = three_layers(0.1, 0.2, 0.3)
    pairs = layers.factor_pairs(model)
    assert sorted(pairs) == PATHS
    leaves = lora_jax.parameters(model)
    assert sorted(path for path in leaves if "/lora/" in path) == [
        f"{path}/{factor}" for path in PATHS for factor in "ab"
    ]
    for path, pair in pairs.items():
        np.testing.assert_array_equal(leaves[f"{path}/a"], pair.a[...])
    assert [pairs[path].dropout for path in PATHS] == [0.1, 0.3, 0.2, 0.2]
    # A model that is one layer, and one that has none.
    assert list(layers.factor_pairs(pass_through(0.0, size=8))) == ["lora"]
    assert layers.factor_pairs(linear(4, 4)(nnx.Rngs(0))) == {}


@pytest.mark.parametrize("rates, of_model", [((0.5, 0.1, 0.25), 0.0), ((0.0, 0.5, 0.0), 0.75)])
def test_given_rates_are_those_of_a_model_that_has_them(rates, of_model):
    """They replace the model's own, a rate of 0 too."""
    expected = seeded(three_layers(*rates), 1)(x := random_input((4, 8)))
    graphdef, state = nnx.split(three_layers(*[of_model] * 3))

    @jax.jit
    def run(rates):
        model = nnx.merge(graphdef, state)
        seeding.seed_dropout(model, jax.random.key(1), rates)
        assert sorted(lora_jax.parameters(model)) == sorted(
            lora_jax.parameters(nnx.merge(graphdef, state))
        )
        return model(x)

    by_path = dict(zip(PATHS, np.float32(rates)[[0, 2, 1, 1]], strict=True))
    for found, own in zip(run(by_path), expected, strict=True):
        np.testing.assert_array_equal(found, own)


def test_rates_of_some_layers_leave_the_others_as_they_are():
    model = three_layers(0.5, 0.0, 0.25)
    expected = seeded(three_layers(0.5, 0.0, 0.5), 1)(x := random_input((4, 8)))
    seeding.seed_dropout(model, jax.random.key(1), {"three/lora": jnp.float32(0.5)})
    for found, own in zip(model(x), expected, strict=True):
        np.testing.assert_array_equal(found, own)


def test_rates_of_an_earlier_call_are_forgotten():
    layer = pass_through(0.1)
    x = jnp.ones((1, 64))
    seeding.seed_dropout(layer, key(3))
    expected = layer(x)
    seeding.seed_dropout(layer, key(3), {"lora": jnp.float32(0.9)})
    assert np.any(layer(x) != expected)
    seeding.seed_dropout(layer, key(3))
    np.testing.assert_array_equal(layer(x), expected)
