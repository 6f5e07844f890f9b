"""Checks of the LoRA layer of every supported Flax layer.

The base layer with a dense delta added to its weight (`merge`) is the reference of the low-rank
branch: the two are computed in different ways and must agree for random factors.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.low_rank import layers
from tests.low_rank.layer_cases import (
    CASES,
    FLOAT32,
    adapted_copy,
    einsum,
    embed,
    exact,
    key,
    linear,
    random_input,
    randomise,
)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A layer of every kind: base, adapted at step 0, with random factors."""
    make, shape, rank = CASES[request.param]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    fresh = adapted_copy(base, rank=rank)
    trained = nnx.clone(fresh)
    randomise(trained.lora, 2)
    x = random_input(shape, 10 if isinstance(base, nnx.Embed) else None)
    return types.SimpleNamespace(base=base, fresh=fresh, trained=trained, x=x)


@pytest.fixture(scope="module")
def results(case):
    """Outputs and gradients of the factors, by the low-rank branch and by the dense delta."""
    graphdef, factors, rest = nnx.split(case.trained, nnx.LoRAParam, ...)

    def by_rank(factors, rest, x):
        return nnx.merge(graphdef, factors, rest)(x)

    def dense(factors, rest, x):
        return lora_jax.merge(nnx.merge(graphdef, factors, rest))(x)

    @jax.jit
    def run(base, fresh, factors, rest, x):
        outputs, gradients = [], []
        for forward in (by_rank, dense):
            y, pull_back = jax.vjp(lambda f, forward=forward: forward(f, rest, x), factors)
            outputs.append(y)
            gradients.append(pull_back(jnp.cos(jnp.arange(y.size)).reshape(y.shape))[0])
        return {
            "base": base(x), "fresh": fresh(x), "outputs": outputs, "gradients": gradients,
        }  # fmt: skip

    return types.SimpleNamespace(**run(case.base, case.fresh, factors, rest, case.x))


def test_output_at_step_0_is_the_bases(results):
    np.testing.assert_array_equal(results.fresh, results.base)


def test_one_factor_is_zero_and_the_other_is_not(case):
    zero, random = (case.fresh.lora.a, case.fresh.lora.b)
    if not isinstance(case.base, nnx.Embed):  # only an embedding starts with A = 0
        zero, random = random, zero
    assert not np.any(zero[...]) and np.all(random[...] != 0)


def test_base_weights_stay_at_their_paths(case):
    own = lora_jax.parameters(case.trained)
    for path, value in lora_jax.parameters(case.base).items():
        np.testing.assert_array_equal(own.pop(path), value)
    assert sorted(own) == ["lora/a", "lora/b"]


def test_branch_equals_dense_delta(results):
    by_rank, dense = results.outputs
    assert not np.allclose(by_rank, results.base, atol=0.1)
    np.testing.assert_allclose(by_rank, dense, **FLOAT32)


def test_merged_layer_is_of_the_original_kind(case):
    merged = nnx.eval_shape(lambda: lora_jax.merge(case.trained))
    assert type(merged) is type(case.base)
    assert nnx.graphdef(merged) == nnx.graphdef(case.base)


def test_gradient_of_the_factors_is_that_through_the_dense_weight(results):
    for name in ("a", "b"):
        got, expected = (gradient["lora"][name][...] for gradient in results.gradients)
        scale = np.abs(expected).max()
        assert scale > 1e-3
        # Sums of up to 300 terms that partly cancel: relative to the largest entry.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5 * scale)


def test_linear_equals_float64():
    base = linear(40, 30)(nnx.Rngs(0))
    randomise(base, 0)
    layer = adapted_copy(base, rank=4, alpha=16.0)
    randomise(layer.lora, 1)
    x = random_input((8, 40))
    w, bias, a, b = (exact(v[...]) for v in (base.kernel, base.bias, layer.lora.a, layer.lora.b))
    expected = exact(x) @ (w + 16 / 4 * a @ b) + bias
    # float32 sums of 40 products of size 1, then times factors of size 10.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scaling, scale", [("alpha/r", 4.0), ("alpha/sqrt(r)", 8.0)])
def test_alpha_is_kept_and_scales_the_branch(scaling, scale):
    """Keras' Dense(lora_rank=4, lora_alpha=16) ends with alpha 4."""
    base = linear(6, 5)(nnx.Rngs(0))
    layer = adapted_copy(base, rank=4, alpha=16.0, scaling=scaling)
    randomise(layer.lora, 1)
    assert (layer.lora.rank, layer.lora.alpha, layer.lora.scale) == (4, 16.0, scale)
    x = random_input((3, 6))
    expected = scale * exact(x) @ exact(layer.lora.a[...]) @ exact(layer.lora.b[...])
    np.testing.assert_allclose(layer(x) - base(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [10, 1])
def test_attend_of_an_adapted_embedding_uses_the_adapted_matrix(vocabulary):
    layer = adapted_copy(embed(vocabulary, 6)(nnx.Rngs(0)), rank=min(vocabulary, 3))
    query = random_input((2, 5, 6))
    base = embed(vocabulary, 6)(nnx.Rngs(0))
    np.testing.assert_array_equal(layer.attend(query), base.attend(query))
    randomise(layer.lora, 1)
    result = layer.attend(query)
    assert result.shape == (2, 5, vocabulary)
    np.testing.assert_allclose(result, lora_jax.merge(layer).attend(query), **FLOAT32)


# --- Attention, stacks, types ---------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
def test_multi_head_attention(jit):
    base = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    method = lora_jax.lora("query|key|value|out", rank=3, alpha=6)
    model = method.insert(base, key(1))
    run = jax.jit(lambda m, x: m(x)) if jit else lambda m, x: m(x)
    x = random_input((2, 5, 8))
    np.testing.assert_array_equal(run(model, x), run(base, x))
    assert {path: pair.lora.b.shape for path, pair in layers.adapted_layers(model).items()} == {
        "key": (3, 2, 4), "out": (3, 8), "query": (3, 2, 4), "value": (3, 2, 4),
    }  # fmt: skip
    randomise(model, 2, nnx.LoRAParam)
    result = run(model, x)
    assert not np.allclose(result, run(base, x), atol=0.1)
    # Softmax over sharp scores: errors of float32 scores of size about 50.
    np.testing.assert_allclose(result, run(lora_jax.merge(model), x), rtol=1e-3, atol=1e-3)


TYPED = ["linear", "general, to heads", "einsum, heads", "embed", "conv 2D, groups"]


@pytest.mark.parametrize("how", ["weights", "computation"])
@pytest.mark.parametrize("name", TYPED)
def test_bfloat16_base_with_float32_factors_keeps_its_type(name, how):
    make, shape, rank = CASES[name]
    base = make(nnx.Rngs(0))
    x = random_input(shape, 10 if name == "embed" else None)
    if how == "weights":
        for _, variable in nnx.to_flat_state(nnx.state(base)):
            variable.set_raw_value(variable[...].astype(jnp.bfloat16))
        x = x if name == "embed" else x.astype(jnp.bfloat16)
        base.dtype = jnp.bfloat16 if name == "embed" else base.dtype
    else:
        base.dtype = jnp.bfloat16
    layer = adapted_copy(base, rank=rank)
    assert layer.lora.a.dtype == layer.lora.b.dtype == jnp.float32
    at_start, of_base = (jax.jit(lambda m, x: m(x))(m, x) for m in (layer, base))
    np.testing.assert_array_equal(exact(at_start), exact(of_base))
    randomise(layer.lora, 1)
    graphdef, factors, rest = nnx.split(layer, nnx.LoRAParam, ...)

    @jax.jit
    def run(factors, rest, x):
        def total(factors):
            y = nnx.merge(graphdef, factors, rest)(x)
            return y.astype(jnp.float32).sum(), y

        gradient, y = jax.grad(total, has_aux=True)(factors)
        return y, lora_jax.merge(nnx.merge(graphdef, factors, rest))(x), gradient

    y, merged, gradient = run(factors, rest, x)
    assert y.dtype == merged.dtype == of_base.dtype == jnp.bfloat16
    assert gradient["lora"]["a"].dtype == gradient["lora"]["b"].dtype == jnp.float32
    # bfloat16 has 8 bits: 3 roundings of 0.4%, relative to the largest values.
    np.testing.assert_allclose(exact(y), exact(merged), rtol=0.02, atol=0.02 * abs(exact(y)).max())


def test_einsum_called_with_another_equation_is_not_silently_wrong():
    base = einsum("bi,io->bo", (4, 4))(nnx.Rngs(0))
    layer = adapted_copy(base)
    randomise(layer.lora, 1)
    x = random_input((3, 4))
    try:
        result = layer(x, "bi,oi->bo")
    except (ValueError, TypeError):
        return
    np.testing.assert_allclose(result, lora_jax.merge(layer)(x, "bi,oi->bo"), **FLOAT32)


# --- Shared layers --------------------------------------------------------------------------------


class Tied(nnx.Module):
    """One Linear used at two places, and an embedding that is also the output layer."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 6, rngs=rngs)
        self.first = nnx.Linear(6, 6, rngs=rngs)
        self.second = self.first

    def __call__(self, ids):
        return self.embed.attend(self.second(jnp.tanh(self.first(self.embed(ids)))))


@pytest.mark.parametrize("jit", [False, True])
def test_tied_layers_are_adapted_once_and_every_use_sees_it(jit):
    base = Tied(nnx.Rngs(0))
    model = lora_jax.lora("embed|first", rank=2).insert(base, key(0))
    assert model.first is model.second and isinstance(model.second, layers.LoRALayer)
    assert sorted(layers.adapted_layers(model)) == ["embed", "first"]
    assert len([p for p in lora_jax.parameters(model) if "lora" in p]) == 4
    randomise(model, 1, nnx.LoRAParam)
    ids = random_input((5,), 10)
    run = jax.jit(lambda m, i: m(i)) if jit else lambda m, i: m(i)

    embedding = exact(base.embed.embedding[...]) + exact(layers.delta(model.embed))
    kernel = exact(base.first.kernel[...]) + exact(layers.delta(model.first))
    hidden = np.tanh(embedding[np.asarray(ids)] @ kernel) @ kernel
    np.testing.assert_allclose(run(model, ids), hidden @ embedding.T, rtol=1e-3, atol=1e-3)
