"""Updates merged into packed weights: the values of the sum, packed; and what the report says of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.quantisation.layers import packed_weight, quantised_layers
from lora_jax.quantisation.merging import merge_packed
from lora_jax.quantisation.registry import FORMATS

EVERY = ("all-linear", "table")
TOKENS = jnp.arange(12).reshape(3, 4)


class Model(nnx.Module):
    """A table, a fused layer, experts of one product, a stack, and a head that stays in float32."""

    def __init__(self, rngs):
        self.table = nnx.Embed(96, 64, rngs=rngs)
        self.fused = nnx.LinearGeneral(64, (2, 64), rngs=rngs)
        self.experts = nnx.Einsum("abe,bed->abd", (2, 64, 32), rngs=rngs)
        self.stack = nnx.vmap(lambda r: nnx.Linear(64, 64, rngs=r))(nnx.Rngs(0).fork(split=3))
        self.head = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, tokens):
        x = self.fused(self.table(tokens)).reshape(-1, 2, 64)
        x = self.experts(x).reshape(-1, 64)
        graph, layers = nnx.split(self.stack)
        x, _ = jax.lax.scan(lambda x, p: (jax.nn.gelu(nnx.merge(graph, p)(x)), None), x, layers)
        return self.head(x)


def adapted(base, method, size=0.1, seed=1):
    """The base with an update of some size in every layer of the method."""
    result = method.insert(base, jax.random.key(0))
    for number, layer in enumerate(adapted_layers(result).values()):
        key = jax.random.fold_in(jax.random.key(seed), number)
        for factor in (layer.lora.a, layer.lora.b):
            factor[...] = size * jax.random.normal(key, factor.shape)
    return result


@pytest.fixture(scope="module")
def model():
    return Model(nnx.Rngs(1))


ALL = lora_jax.lora(EVERY, rank=4) + lora_jax.lora("head", rank=2)


@pytest.mark.parametrize(
    ("form", "into"),
    [("nf4", "q8_0"), ("nf4", None), ("int8", None), ("q4_1", None), ("q4_0", "nf4_single")],
)
def test_what_is_packed_is_the_sum_of_base_and_update(model, form, into):
    base = lora_jax.quantise(model, EVERY, form)
    trained = adapted(base, ALL)
    packed, report = merge_packed(trained, into)
    whole = lora_jax.merge(trained, jnp.float32)
    wanted = lora_jax.quantise(whole, EVERY, into or form)
    found, expected = lora_jax.parameters(packed), lora_jax.parameters(wanted)
    assert found.keys() == expected.keys() and not adapted_layers(packed)
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    np.testing.assert_array_equal(packed(TOKENS), wanted(TOKENS))
    plain, before = lora_jax.dequantise(packed), lora_jax.dequantise(base)
    matrices = {"table": 1, "fused": 1, "experts": 2, "stack": 3}
    assert [one.path for one in report] == [p for p in sorted(matrices) for _ in range(matrices[p])]
    for one in report:
        name = "embedding" if one.path == "table" else "kernel"
        new, sums, old = (
            np.asarray(getattr(getattr(m, one.path), name)[...], np.float64)
            for m in (plain, whole, before)
        )
        if one.path == "stack":
            new, sums, old = new[one.number], sums[one.number], old[one.number]
        if one.path == "experts":  # two matrices of one layer
            continue
        assert one.format == FORMATS[into or form] and not one.same
        error, change = np.linalg.norm(new - sums), np.linalg.norm(sums - old)
        np.testing.assert_allclose(one.relative, error / np.linalg.norm(sums), rtol=1e-5)
        np.testing.assert_allclose(one.changes, change**2, rtol=1e-5)
        np.testing.assert_allclose(one.kept, np.vdot(new - old, sums - old), rtol=1e-4)


def test_weights_without_an_update_stay_as_they_are(model):
    base = lora_jax.quantise(model, EVERY, "nf4")
    trained = adapted(base, lora_jax.lora("fused", rank=2))
    packed, report = merge_packed(trained)
    assert {one.path for one in report if not one.same} == {"fused"}
    assert all(one.errors == one.changes == 0 for one in report if one.same)
    before = lora_jax.parameters(base)
    for path, value in lora_jax.parameters(packed).items():
        assert path.startswith("fused") or value is before[path]
    # In another form they are packed anew.
    other, report = merge_packed(trained, "int8")
    assert {packed_weight(q)[1].format for q in quantised_layers(other).values()} == {
        FORMATS["int8"]
    }
    assert not any(one.same for one in report)


def test_tables_become_floating_point_numbers_where_they_are_asked_for(model):
    base = lora_jax.quantise(model, EVERY, "q8_0")
    trained = adapted(base, ALL)
    packed, report = merge_packed(trained, "nf4", tables=False)
    assert "table" not in quantised_layers(packed) and "table" not in {one.path for one in report}
    wanted = lora_jax.merge(trained).table.embedding[...]
    np.testing.assert_array_equal(packed.table.embedding[...], wanted)


def test_a_small_update_is_rounded_back(model):
    base = lora_jax.quantise(model, "fused", "q8_0")
    _, (one,) = merge_packed(adapted(base, lora_jax.lora("fused", rank=2), size=1e-4))
    assert one.changes > 0 and one.kept < 0.5 * one.changes
    _, (one,) = merge_packed(adapted(base, lora_jax.lora("fused", rank=2), size=0.3))
    assert one.kept == pytest.approx(one.changes, rel=0.05)


def test_what_cannot_be_packed_again_is_refused(model):
    method = lora_jax.lora("fused", rank=2)
    with pytest.raises(InputError, match=r"no quantised layer to merge into; lora_jax.merge"):
        merge_packed(method.insert(model, jax.random.key(0)))
    base = lora_jax.quantise(model, "experts", "int8")
    trained = adapted(base, lora_jax.lora("experts", rank=2))
    with pytest.raises(InputError, match="format must be one of nf4"):
        merge_packed(trained, "q4_9")
    with pytest.raises(InputError, match=r"experts: nf4 packs blocks of 128 .* rows of 64"):
        merge_packed(trained, lora_jax.quantisation.four_bits.FourBits("nf4", block=128))
    lora_jax.enable(trained, False)
    with pytest.raises(InputError, match="experts is switched off"):
        merge_packed(trained)
    huge = adapted(lora_jax.quantise(model, "fused", "q4_0"), method, size=1e4)
    with pytest.raises(
        InputError, match="the merged weight of fused has values that are not finite or too large"
    ):
        merge_packed(huge)
