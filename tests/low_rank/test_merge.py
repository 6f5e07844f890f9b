"""Checks of merging, stripping and task switching."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import from_shapes

import lora_jax
from lora_jax.data.batch import Inputs
from lora_jax.low_rank import layers
from lora_jax.models.encoder import Classifier, EncoderConfig

TINY = EncoderConfig(
    architecture="roberta",
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
    type_vocab_size=1,
    position_offset=2,
)
KEY = jax.random.key(0, impl="rbg")
METHOD = lora_jax.lora(
    {
        r".*/(query|value)": {"rank": 4, "alpha": 8},
        r".*/feed_forward/up": {"rank": 2},
        r".*/word": {"rank": 3},
    },
    alpha=2,
)


def randomise(model, seed, only=nnx.LoRAParam, size=0.1):
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model, only)):
        variable[...] = jnp.asarray(size * rng.normal(size=variable.shape), variable.dtype)


def arrays(model):
    return {path: np.asarray(value) for path, value in lora_jax.parameters(model).items()}


def assert_same_bits(first, second):
    first, second = arrays(first), arrays(second)
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert value.dtype == second[path].dtype and value.tobytes() == second[path].tobytes(), path


@pytest.fixture(scope="module")
def encoder():
    base = from_shapes(lambda: Classifier(TINY, 3, nnx.Rngs(0)))
    adapted = METHOD.insert(base, KEY)
    randomise(adapted, 1)
    rng = np.random.default_rng(2)
    tokens = jnp.asarray(rng.integers(0, 30, (2, 8)), jnp.int32)
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    batch = (Inputs(tokens, ones, positions, 0 * ones), jnp.arange(2), jnp.zeros(2, jnp.int32))
    return types.SimpleNamespace(base=base, adapted=adapted, batch=batch)


def program():
    """A jitted forward pass whose cache and text can be looked at."""

    def run(graphdef, state, batch):
        return nnx.merge(graphdef, state)(*batch)

    return jax.jit(run, static_argnums=0)


def test_merged_logits_equal_unmerged(encoder):
    run = jax.jit(lambda model, batch: model(*batch))
    merged = lora_jax.merge(encoder.adapted)
    got, expected = run(merged, encoder.batch), run(encoder.adapted, encoder.batch)
    assert not np.allclose(expected, run(encoder.base, encoder.batch), atol=1e-3)
    # Three layers of float32 sums in another order.
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_merging_leaves_the_adapted_model_as_it_is(encoder):
    before = arrays(encoder.adapted)
    lora_jax.merge(encoder.adapted)
    after = arrays(encoder.adapted)
    assert before.keys() == after.keys()
    assert all(before[p].tobytes() == after[p].tobytes() for p in before)
    assert layers.adapted_layers(encoder.adapted)


def test_merged_model_is_the_bases_program(encoder):
    merged = lora_jax.merge(encoder.adapted)
    base_graphdef, base_state = nnx.split(encoder.base)
    graphdef, state = nnx.split(merged)
    assert graphdef == base_graphdef and hash(graphdef) == hash(base_graphdef)
    assert jax.tree.structure(state) == jax.tree.structure(base_state)
    assert jax.tree.structure(merged) == jax.tree.structure(encoder.base)
    assert arrays(merged).keys() == arrays(encoder.base).keys()

    run = program()
    run(base_graphdef, base_state, encoder.batch)
    assert run._cache_size() == 1
    run(graphdef, state, encoder.batch)
    assert run._cache_size() == 1
    texts = [
        program().lower(g, s, encoder.batch).compile().as_text()
        for g, s in ((base_graphdef, base_state), (graphdef, state))
    ]
    assert texts[0] == texts[1]


def test_adapted_model_is_another_program(encoder):
    """So that the test above can fail."""
    assert nnx.graphdef(encoder.adapted) != nnx.graphdef(encoder.base)


def test_only_adapted_weights_change(encoder):
    merged, base = arrays(lora_jax.merge(encoder.adapted)), arrays(encoder.base)
    changed = {path for path in base if base[path].tobytes() != merged[path].tobytes()}
    block = "encoder/layers/block/"
    assert changed == {
        block + "attention/query/kernel",
        block + "attention/value/kernel",
        block + "feed_forward/up/kernel",
        "encoder/embeddings/word/embedding",
    }


def test_strip_gives_the_base_back(encoder):
    stripped = lora_jax.strip(encoder.adapted)
    assert_same_bits(stripped, encoder.base)
    assert nnx.graphdef(stripped) == nnx.graphdef(encoder.base)
    assert layers.adapted_layers(encoder.adapted)  # the adapted model is as it was


def test_stripping_after_merging_is_not_needed_and_refused(encoder):
    with pytest.raises(ValueError, match="no adapted layer"):
        lora_jax.strip(lora_jax.merge(encoder.adapted))


@pytest.mark.parametrize("function", [lora_jax.merge, lora_jax.strip])
def test_model_without_adapted_layer_is_refused(encoder, function):
    with pytest.raises(ValueError, match="no adapted layer"):
        function(encoder.base)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_task_switch_equals_a_fresh_merge(encoder, dtype):
    """Subtracting a delta does not restore the bits; another adapter on the kept base does."""
    base = nnx.clone(encoder.base)
    for _, variable in nnx.to_flat_state(nnx.state(base, nnx.Param)):
        variable.set_raw_value(variable[...].astype(dtype))
    untouched = arrays(base)
    task_a = METHOD.insert(base, KEY)
    randomise(task_a, 1)
    serving = lora_jax.merge(task_a)
    task_b = METHOD.insert(
        lora_jax.strip(task_a), jax.random.fold_in(KEY, 5)
    )  # switch: A off, B on
    randomise(task_b, 2)
    serving = lora_jax.merge(task_b)

    fresh = METHOD.insert(base, jax.random.fold_in(KEY, 9))
    randomise(fresh, 2)
    assert_same_bits(serving, lora_jax.merge(fresh))
    assert all(untouched[p].tobytes() == v.tobytes() for p, v in arrays(base).items())


@pytest.mark.parametrize("stack", [False, True])
def test_bfloat16_merge_rounds_a_float32_sum_once(stack):
    def make(rngs):
        return nnx.Linear(64, 48, param_dtype=jnp.bfloat16, rngs=rngs)

    if stack:
        make = nnx.split_rngs(splits=3)(nnx.vmap(make))
    model = lora_jax.lora("", rank=8, alpha=16).insert(make(nnx.Rngs(0)), KEY)
    randomise(model, 1, size=0.02)  # a delta of about 1e-3 beside weights of about 0.1
    w, a, b = (np.asarray(v[...]).astype(np.float64) for v in (
        model.kernel, model.lora.a, model.lora.b,
    ))  # fmt: skip
    exact = w + 16 / 8 * a @ b
    merged = lora_jax.merge(model).kernel[...]
    assert merged.dtype == jnp.bfloat16
    once = jnp.asarray(exact, jnp.bfloat16)
    # A value that float32 puts on the other side of a rounding boundary (1 in 2^16) may differ.
    assert np.mean(np.asarray(merged) != np.asarray(once)) < 1e-3
    # A delta rounded to bfloat16 before the sum would be wrong in far more places.
    twice = model.kernel[...] + jnp.asarray(2 * a @ b, jnp.bfloat16)
    assert np.mean(np.asarray(twice) != np.asarray(once)) > 1e-2


def test_merge_under_jit_equals_merge(encoder):
    graphdef, state = nnx.split(encoder.adapted)

    @jax.jit
    def merged(state):
        return nnx.state(lora_jax.merge(nnx.merge(graphdef, state)), nnx.Param)

    expected = nnx.state(lora_jax.merge(encoder.adapted), nnx.Param)
    for got, value in zip(jax.tree.leaves(merged(state)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-7)


class TiedModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(12, 6, rngs=rngs)
        self.hidden = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, ids):
        return self.embed.attend(jnp.tanh(self.hidden(self.embed(ids))))


def test_tied_embedding_is_merged_once_for_both_uses():
    base = TiedModel(nnx.Rngs(0))
    model = lora_jax.lora("embed|hidden", rank=2, alpha=3).insert(base, KEY)
    randomise(model, 1, size=1.0)
    merged = lora_jax.merge(model)
    ids = jnp.arange(12)
    assert not np.allclose(model(ids), base(ids), atol=0.1)
    np.testing.assert_allclose(model(ids), merged(ids), rtol=1e-4, atol=1e-4)
    assert nnx.graphdef(merged) == nnx.graphdef(base)


class SharedVariable(nnx.Module):
    """Two layers that share one weight Variable, not one layer used twice."""

    def __init__(self, rngs):
        self.one = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
        self.two = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
        self.two.kernel = self.one.kernel

    def __call__(self, x):
        return self.one(x), self.two(x)


@pytest.mark.parametrize("targets", ["one", "one|two"])
def test_layers_that_share_a_weight_are_not_merged_into_each_other(targets):
    """Adapted apart they are two matrices; merging both deltas into one weight is wrong."""
    base = SharedVariable(nnx.Rngs(0))
    try:
        model = lora_jax.lora(targets, rank=2).insert(base, KEY)
        randomise(model, 1, size=1.0)
        merged = lora_jax.merge(model)
    except ValueError:
        return
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)
    for got, expected in zip(merged(x), model(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
