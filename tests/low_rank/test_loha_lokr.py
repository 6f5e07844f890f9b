"""LoHa and LoKr on every kind of layer against the formulas, and in all that a method goes through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax
from lora_jax.errors import InputError
from lora_jax.low_rank.updates import DropoutKey
from tests.low_rank.layer_cases import CASES, key, random_input, randomise


def _by_formula(layer, scale):
    """The update in float64, in the shape of the weight, one map after another."""
    roles, lora = layer.roles(), layer.lora
    batch, inputs, outputs = roles.sizes(layer.view())
    leaves = {
        path[-1]: np.asarray(leaf[...], np.float64)
        for path, leaf in nnx.to_flat_state(nnx.state(lora))
    }
    maps = int(np.prod(batch))
    leaves = {name: v.reshape(maps, *v.shape[len(batch):]) for name, v in leaves.items()}  # fmt: skip
    result = []
    for one in range(maps):
        own = {name: v[one] for name, v in leaves.items()}
        if "a1" in own:
            flat = {
                name: v.reshape(-1, v.shape[-1]) if name[0] == "a" else v.reshape(v.shape[0], -1)
                for name, v in own.items()
            }
            total = (flat["a1"] @ flat["b1"]) * (flat["a2"] @ flat["b2"])
        else:
            w1 = own["w1"] if "w1" in own else own["w1_a"] @ own["w1_b"]
            w2 = own["w2"] if "w2" in own else own["w2_a"] @ own["w2_b"]
            window = np.ndindex(*w2.shape[:-2])  # () for all but convolutions
            total = np.concatenate([np.kron(w1, w2[at]) for at in window])
        result.append(scale * total)
    ordered = np.stack(result).reshape(batch + inputs + outputs)
    return np.transpose(ordered, np.argsort(roles.batch + roles.inputs + roles.outputs)).reshape(
        layer.weight_shape()
    )


_KINDS = (
    "linear, vector", "general, to heads", "general, from heads", "general, batch axis", "einsum, heads",
    "einsum, experts", "einsum, transposed", "embed", "embed, one row", "conv 2D, groups, stride, dilated",
    "transposed 1D, stored transposed",
)  # fmt: skip


@pytest.mark.parametrize("method", ["loha", "lokr"])
@pytest.mark.parametrize("name", _KINDS)
def test_every_kind_of_layer_computes_the_formula(name, method):
    """The merged layer is of the pre-trained class, so it is an independent reference of the output."""
    make, shape, rank = CASES[name]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    table = isinstance(base, nnx.Embed)
    x = random_input(shape, integers_below=base.num_embeddings if table else None)
    rank = 2 if name in ("einsum, heads", "embed") else min(rank, 2)
    adapted = getattr(lora_jax, method)("", rank=rank, alpha=3.0 * rank).insert(base, key(0))
    np.testing.assert_array_equal(adapted(x), base(x))
    randomise(adapted, 1, only=nnx.LoRAParam)
    merged = lora_jax.merge(adapted)
    weight, before = (m.embedding if table else m.kernel for m in (merged, base))
    by_formula = np.asarray(before[...], np.float64) + _by_formula(adapted, 3.0)
    np.testing.assert_allclose(weight[...], by_formula, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=2e-4, atol=2e-4)
    assert np.abs(np.asarray(adapted(x) - base(x))).max() > 0.05


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_a_rank_larger_than_the_matrix_is_refused_capped_or_skipped(method):
    make = getattr(lora_jax, method)
    base = nnx.Linear(12, 6, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"rank 7 is larger than the matrix .* too_large='cap'"):
        make("", rank=7).insert(base, key(0))
    capped = make("", rank=7, alpha=14, too_large="cap").insert(base, key(0))
    assert capped.lora.scale == 2.0 and capped.lora.alpha == 12.0
    with pytest.raises(InputError, match="no layer is left"):
        make("", rank=7, too_large="skip").insert(base, key(0))


@pytest.mark.wrong_types
def test_arguments_of_lokr_out_of_range_and_what_the_summary_says():
    for wrong in ({"factor": -2}, {"factor": 1.5}, {"decompose_both": 1}, {"rank": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            lora_jax.lokr("q", **wrong)
    method = lora_jax.lokr("", rank=1, factor=4, decompose_both=True)
    summary = method.summary(method.insert(nnx.Linear(16, 16, rngs=nnx.Rngs(0)), key(0)))
    assert "rank 1, alpha 1, scale 1 (alpha/r), dropout 0, factor 4, both decomposed" in str(
        summary
    )


METHODS = {
    "loha": {"rank": 2, "alpha": 3.0},
    "loha, formed": {"rank": 3, "alpha": 3.0},
    "lokr": {"rank": 1, "alpha": 3.0, "decompose_both": True},
    "lokr, whole": {"rank": 2, "alpha": 3.0, "factor": 4},
}


def _method(name, targets="", **further):
    return getattr(lora_jax, name.split(",")[0])(targets, **METHODS[name], **further)


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def _adapted(method, base):
    adapted = method.insert(base, key(0))
    randomise(adapted, 1, only=nnx.LoRAParam)
    return adapted


def _x(*shape):
    return random_input(shape, seed=3)


def test_saved_and_loaded_bit_for_bit_beside_a_second_method(name, tmp_path):
    base = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    method = _method(name) + lora_jax.bitfit()
    adapted = _adapted(method, base)
    adapted.bias[...] = jnp.arange(8.0)
    lora_jax.save(tmp_path, adapted, method, base)
    loaded = lora_jax.load(tmp_path, base)
    np.testing.assert_array_equal(loaded(_x(3, 12)), adapted(_x(3, 12)))
    assert type(lora_jax.strip(adapted)) is nnx.Linear
    groups = set(method.labels(adapted).values())
    assert groups == {"lora", "bias", lora_jax.FROZEN}


class Stacked(nnx.Module):
    """Layers in one scan."""

    def __init__(self, rngs):
        make = lambda r: nnx.Linear(12, 12, rngs=r)  # noqa: E731
        self.block = nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)

    def __call__(self, x):
        graphdef, state = nnx.split(self.block)
        step = lambda x, layer: (jnp.tanh(nnx.merge(graphdef, layer)(x)), None)  # noqa: E731
        return jax.lax.scan(step, x, state)[0]


def test_stacked_layers_equal_separate_ones(name):
    base = Stacked(nnx.Rngs(0))
    adapted, x = _adapted(_method(name, "block"), base), _x(4, 12)
    expected = x
    for number in range(3):
        one = nnx.Linear(12, 12, rngs=nnx.Rngs(0))
        one.kernel[...], one.bias[...] = base.block.kernel[number], base.block.bias[number]
        one = _method(name).insert(one, key(0))
        for path, leaf in nnx.to_flat_state(nnx.state(adapted.block.lora)):
            getattr(one.lora, path[0])[...] = leaf[number]
        expected = jnp.tanh(one(expected))
    np.testing.assert_allclose(adapted(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adapted(x), lora_jax.merge(adapted)(x), rtol=1e-4, atol=1e-5)


def test_parts_of_a_fused_projection_have_updates_of_their_own(name):
    base = nnx.Linear(12, 24, rngs=nnx.Rngs(0))
    adapted = _adapted(_method(name, parts=("q", "v"), fused=("q", "k", "v")), base)
    merged, x = lora_jax.merge(adapted), _x(4, 12)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(merged.kernel[:, 8:16], base.kernel[:, 8:16])
    assert set(adapted.lora.members()) == {"q", "v"}


def test_on_a_quantised_base(name):
    packed = lora_jax.quantise(nnx.Linear(64, 32, rngs=nnx.Rngs(0)), "", "int8")
    adapted, x = _adapted(_method(name), packed), _x(4, 64)
    plain = nnx.Linear(64, 32, rngs=nnx.Rngs(0))
    plain.kernel[...] = lora_jax.dequantise(packed).kernel[...]
    plain = _adapted(_method(name), plain)
    np.testing.assert_allclose(adapted(x), plain(x), rtol=1e-3, atol=1e-3)


def test_verified_abstract_and_in_bfloat16(name):
    base = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    method = _method(name)
    report = lora_jax.verify(base, method, _x(4, 12))
    assert not report.failures
    shapes = nnx.eval_shape(lambda: method.insert(nnx.Linear(12, 8, rngs=nnx.Rngs(0)), key(0)))
    assert {p: v.shape for p, v in lora_jax.parameters(shapes).items()} == {
        p: v.shape for p, v in lora_jax.parameters(method.insert(base, key(0))).items()
    }
    low = nnx.Linear(12, 8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    adapted = _adapted(method, low)
    assert adapted(_x(3, 12)).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(adapted.lora))} == {
        jnp.dtype("float32")
    }


def test_dropout_is_on_the_inputs_of_the_update_only(name):
    base = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    adapted, x = _adapted(_method(name, dropout=0.5), base), _x(64, 12)
    delta = lora_jax.merge(adapted).kernel[...] - base.kernel[...]
    adapted.lora.dropout_key = DropoutKey(jax.random.key(1))
    dropped = adapted.lora.drop(x)
    assert 0.3 < np.mean(np.asarray(dropped) == 0) < 0.7
    np.testing.assert_allclose(adapted(x), base(x) + dropped @ delta, rtol=1e-4, atol=1e-4)


def test_a_tied_output_layer_sees_the_adapted_table_and_lookups_past_the_end_are_as_the_bases(name):
    adapted = _adapted(_method(name), nnx.Embed(12, 8, rngs=nnx.Rngs(0)))
    merged = lora_jax.merge(adapted)
    query = _x(3, 8)
    np.testing.assert_allclose(adapted.attend(query), merged.attend(query), rtol=1e-4, atol=1e-4)
    rows = jnp.asarray([0, 11, -1, -12, 12])
    np.testing.assert_allclose(adapted(rows), merged(rows), rtol=1e-4, atol=1e-4)


def test_runs_side_by_side_train_as_alone(name):
    """`jax.vmap` over the values of two runs, under `nnx.jit`'s rules for state: pure functions."""
    base = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    adapted = _adapted(_method(name), base)
    labels = _method(name).labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    tx, x = optax.sgd(0.1), _x(4, 12)

    def step(values):
        loss = lambda v: jnp.mean(lora_jax.join(structure, v, frozen)(x) ** 2)  # noqa: E731
        updates, _ = tx.update(jax.grad(loss)(values), tx.init(values))
        return optax.apply_updates(values, updates)

    other = {path: v + 0.1 for path, v in trainable.items()}
    both = jax.jit(jax.vmap(step))(jax.tree.map(lambda *v: jnp.stack(v), trainable, other))
    for number, values in enumerate((trainable, other)):
        alone = step(values)
        for path in alone:
            np.testing.assert_allclose(both[path][number], alone[path], rtol=1e-4, atol=1e-6)


def test_no_matrix_of_the_weights_size_is_formed():
    """By the compiler's count of operations, a forward pass is less than a product with the weight."""
    base, x = nnx.Linear(96, 96, use_bias=False, rngs=nnx.Rngs(0)), jnp.zeros((256, 96))
    of_base = _flops(base, x)
    for method, most in ((lora_jax.loha("", rank=2), 0.2), (lora_jax.lokr("", rank=2), 0.1)):
        assert _flops(method.insert(base, key(0)), x) - of_base < most * of_base


def _flops(model, x):
    graphdef, state = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).lower(state, x).compile()
    return compiled.cost_analysis()["flops"]
