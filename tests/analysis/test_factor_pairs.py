"""Factor pairs from adapter folders and from models, against the weights that merging changes.

The reference is always the dense update of the whole layer: its base weight before and after
`merge`, brought into (inputs, outputs) by hand for each kind of layer.
"""

from __future__ import annotations

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import from_shapes
from safetensors.numpy import load_file

import lora_jax
from lora_jax import adapters, methods, partition
from lora_jax.analysis import factor_pairs, spectra
from lora_jax.analysis.factor_pairs import FactorPair
from lora_jax.interop.loralib import from_state_dict
from lora_jax.low_rank import layers
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config

KEY = jax.random.key(0, impl="rbg")
HEAD = "head/.*"
ENCODER = EncoderConfig(
    architecture="bert", vocab_size=30, hidden_size=16, num_hidden_layers=3,
    num_attention_heads=2, intermediate_size=24, max_position_embeddings=12, type_vocab_size=2,
)  # fmt: skip
DECODER = GPT2Config(16, 3, 2, vocab_size=20, n_positions=16)
QKV = {"parts": ("q", "v"), "fused": ("q", "k", "v")}


class Mixed(nnx.Module):
    """Layers of every kind, none stacked."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 5, rngs=rngs)
        self.to_heads = nnx.LinearGeneral(6, (2, 4), rngs=rngs)
        self.from_heads = nnx.LinearGeneral((2, 4), 6, axis=(-2, -1), rngs=rngs)
        self.heads = nnx.Einsum("nta,hab->nthb", (3, 6, 4), rngs=rngs)
        self.experts = nnx.Einsum("ebi,eio->ebo", (3, 6, 5), rngs=rngs)
        self.transposed = nnx.Einsum("bi,oi->bo", (5, 6), rngs=rngs)
        self.conv = nnx.Conv(6, 8, 3, feature_group_count=2, rngs=rngs)
        self.embed = nnx.Embed(10, 6, rngs=rngs)
        self.qkv = nnx.Linear(6, 15, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)


def heads_first(w):
    return w.transpose(1, 0, 2).reshape(1, 6, 12)


def groups_first(w):
    """(window, inputs of a group, outputs): every group is a map of its own."""
    return w.reshape(9, 2, 4).transpose(1, 0, 2)


def thirds(index):
    return lambda w: w[..., index, :]


# Path of a layer or part: its weight as (maps, inputs, outputs).
BLOCK = "encoder/layers/block/"
BY_HAND = {
    "encoder": {
        f"{BLOCK}attention/query": lambda w: w,
        f"{BLOCK}attention/value": lambda w: w,
        f"{BLOCK}feed_forward/up": lambda w: w,
        "encoder/embeddings/word": lambda w: w[None],
    },
    "decoder": {
        "layers/block/attention/qkv/q": thirds(0),
        "layers/block/attention/qkv/v": thirds(2),
        "layers/block/feed_forward/down": lambda w: w,
    },
    "split": {
        "layers/first/block/attention/qkv/q": thirds(0),
        "layers/first/block/attention/qkv/v": thirds(2),
        "layers/last_1/block/attention/qkv/q": thirds(0),
        "layers/last_1/block/attention/qkv/v": thirds(2),
    },
    "mixed": {
        "linear": lambda w: w[None],
        "to_heads": lambda w: w.reshape(1, 6, 8),
        "from_heads": lambda w: w.reshape(1, 8, 6),
        "heads": heads_first,
        "experts": lambda w: w,
        "transposed": lambda w: w.T[None],
        "conv": groups_first,
        "embed": lambda w: w[None],
        "qkv/first": lambda w: w[None, :, :4],
        "qkv/last": lambda w: w[None, :, 9:],
    },
}
LEFT_OUT = {"decoder": thirds(1), "mixed": lambda w: w[:, 4:9]}  # of the fused projections
SETTINGS = {
    "encoder": {
        r".*/query": {"rank": 4, "alpha": 8},
        r".*/value": {"rank": 2, "alpha": 3},
        r".*/up": {"rank": 4, "alpha": 6, "scaling": "alpha/sqrt(r)"},
        r".*/(word|query|up)": {"rank": 5, "alpha": 1},  # for the word only: the first match wins
    },
    "decoder": {".*/qkv": {**QKV, "rank": 4}, ".*/down": {"rank": 2, "alpha": 1}},
    "split": {".*/qkv": {**QKV, "rank": 4}},
    "mixed": {
        "qkv": {"parts": ("first", "last"), "fused": ("first", "mid", "last"),
                "fused_sizes": (4, 5, 6)},
        "conv": {"rank": 3},
        "(?!head$).+": {"rank": 2},
    },
}  # fmt: skip
# alpha / r, or alpha / sqrt(r); alpha = 32 where a target has none of its own.
SCALES = {
    "encoder": {"query": 2.0, "value": 1.5, "up": 3.0, "word": 0.2},
    "decoder": {"q": 8.0, "v": 8.0, "down": 0.5},
    "split": {"q": 8.0, "v": 8.0},
    "mixed": dict.fromkeys(
        "linear to_heads from_heads heads experts transposed embed".split(),  # noqa: SIM905
        16.0,
    )
    | {"conv": 32 / 3, "first": 16.0, "last": 16.0},
}


def base_of(name):
    make = {
        "encoder": lambda: Classifier(ENCODER, 3, nnx.Rngs(0)),
        "mixed": lambda: Mixed(nnx.Rngs(0)),
    }.get(name, lambda: GPT2(DECODER, rngs=nnx.Rngs(0)))
    return from_shapes(make, scale=1.0)


def method_of(name):
    rank = {"mixed": 2}.get(name, 4)
    head = HEAD if name in ("encoder", "mixed") else None
    lora = lora_jax.lora(SETTINGS[name], rank=rank, alpha=32, head=head, bias="all")
    return lora_jax.top_layers(1) + lora if name == "split" else lora


def randomise(model, seed):
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), variable.dtype)
    return model


def saved(folder, method, model, base=adapters.UNKNOWN_BASE):
    """The model's trained leaves as a folder on disk, read again."""
    labels = method.labels(model)
    _, trainable, _ = lora_jax.split(model, labels)
    lora_jax.save_adapter(folder, trainable, labels, method, base)
    return lora_jax.load_adapter(folder)


@pytest.fixture(scope="module", params=list(BY_HAND))
def case(request, tmp_path_factory):
    name = request.param
    method = method_of(name)
    model = randomise(method.insert(base_of(name), KEY), 1)
    return types.SimpleNamespace(
        name=name,
        model=model,
        adapter=saved(tmp_path_factory.mktemp("adapter"), method, model),
        pairs=factor_pairs.from_model(model),
        by_hand=BY_HAND[name],
    )


def weights(model, by_hand):
    """The weights of the adapted layers as (maps, inputs, outputs) in float64."""
    params = lora_jax.parameters(model)
    result = {}
    for path, arrange in by_hand.items():
        layer = path.rpartition("/")[0] if path.split("/")[-2:-1] == ["qkv"] else path
        kind = "embedding" if f"{layer}/embedding" in params else "kernel"
        result[path] = arrange(np.asarray(leaf(params, f"{layer}/{kind}")).astype(np.float64))
    return result


def leaf(params, path):
    """A leaf, or the layers of an uncut stack that it has in one with the last cut off."""
    if path in params:
        return params[path]
    whole = params[re.sub("/(first|last_1)/", "/", path)]
    return whole[-1:] if "/last_1/" in path else whole[:-1]


def dense(pair):
    a, b = (np.asarray(x).astype(np.float64) for x in (pair.a, pair.b))
    return pair.scale * a @ b


# --- From an adapter and from a model -------------------------------------------------------------


def test_names_and_shapes(case):
    assert case.pairs.keys() == case.by_hand.keys()  # the head, biases and top layers are not there
    for path, w in weights(case.model, case.by_hand).items():
        pair = case.pairs[path]
        assert pair.a.shape == (w.shape[0], w.shape[1], pair.rank)
        assert pair.b.shape == (w.shape[0], pair.rank, w.shape[2])
        assert pair.layers == w.shape[0]
        assert pair.a.dtype == pair.b.dtype == jnp.float32


def test_scales(case):
    for path, pair in case.pairs.items():
        expected = SCALES[case.name][path.rpartition("/")[2]]
        assert pair.scale == pytest.approx(expected, rel=1e-12), path


def test_adapter_and_model_give_the_same(case):
    """The folder holds factors and a description, and no base weight."""
    pairs = factor_pairs.from_adapter(case.adapter)
    assert pairs.keys() == case.pairs.keys()
    for path, pair in case.pairs.items():
        np.testing.assert_array_equal(pairs[path].a, pair.a, err_msg=path)
        np.testing.assert_array_equal(pairs[path].b, pair.b, err_msg=path)
        assert pairs[path].scale == pair.scale


def test_groups_beside_lora_are_in_the_adapter_and_not_in_the_pairs(case):
    others = {"decoder": set(), "split": {"top"}}.get(case.name, {"head"})
    assert set(case.adapter.groups.values()) == {"lora", "bias"} | others
    pairs = factor_pairs.from_adapter(case.adapter)
    factors = [path for path in case.adapter.values if "/lora/" in path]
    assert len(factors) == 2 * len(pairs)


# --- Against the merged weights -------------------------------------------------------------------


def test_products_are_what_merging_adds(case):
    before = weights(case.model, case.by_hand)
    after = weights(lora_jax.merge(case.model), case.by_hand)
    for path, pair in case.pairs.items():
        # The merged weight is rounded once, at the size of the sum (up to about 100).
        np.testing.assert_allclose(
            dense(pair), after[path] - before[path], rtol=1e-5, atol=2e-5, err_msg=path
        )


def test_products_are_the_deltas_of_the_layers(case):
    deltas = {
        path: np.asarray(layers.delta(layer)).astype(np.float64)
        for path, layer in layers.adapted_layers(case.model).items()
    }
    for path, arrange in case.by_hand.items():
        layer = path if path in deltas else path.rpartition("/")[0]
        expected = arrange(deltas[layer])
        np.testing.assert_allclose(
            dense(case.pairs[path]), expected, rtol=1e-5, atol=2e-5, err_msg=path
        )
        if layer != path and case.name in LEFT_OUT:
            assert not LEFT_OUT[case.name](deltas[layer]).any()


def test_base_matrices_are_the_base_weights(case):
    matrices = factor_pairs.base_matrices(case.model)
    expected = weights(lora_jax.strip(case.model), case.by_hand)
    assert matrices.keys() == case.pairs.keys()
    for path, w in expected.items():
        np.testing.assert_array_equal(matrices[path], w, err_msg=path)
        assert matrices[path].dtype == jnp.float32


def test_singular_directions_are_the_inputs(case):
    """x passes through `a` first: an input orthogonal to a's columns is not changed by the update."""
    rng = np.random.default_rng(3)
    for pair in case.pairs.values():
        if pair.a.shape[1] > pair.rank:
            a = np.asarray(pair.a[0]).astype(np.float64)
            x = rng.normal(size=a.shape[0])
            q = np.linalg.qr(a)[0]
            np.testing.assert_allclose((x - q @ (q.T @ x)) @ dense(pair)[0], 0, atol=1e-10)


# --- Types ----------------------------------------------------------------------------------------


def test_bfloat16_factors_and_weights_become_float32():
    make = lambda: nnx.Linear(6, 5, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))  # noqa: E731
    base = from_shapes(lambda: nnx.Dict(linear=make()), scale=1.0)
    method = lora_jax.lora("linear", rank=2)
    model = method.insert(base, KEY)
    for variable in (model["linear"].lora.a, model["linear"].lora.b):
        variable.set_raw_value(jnp.full(variable.shape, 1 / 3, jnp.bfloat16))
    pair = factor_pairs.from_model(model)["linear"]
    assert pair.a.dtype == pair.b.dtype == jnp.float32
    np.testing.assert_array_equal(pair.a[0], np.float32(jnp.bfloat16(1 / 3)))
    matrices = factor_pairs.base_matrices(model)["linear"]
    assert matrices.dtype == jnp.float32
    np.testing.assert_array_equal(matrices[0], base["linear"].kernel[...].astype(jnp.float32))


def test_pair_knows_its_sizes():
    pair = FactorPair(jnp.zeros((3, 8, 2)), jnp.zeros((3, 2, 5)), 0.5)
    assert (pair.layers, pair.rank) == (3, 2)


# --- Shapes that fit in two ways ------------------------------------------------------------------


def adapter_with(rank, **shapes):
    """An adapter of random factors; a name's double underscore is a slash of the path."""
    rng = np.random.default_rng(0)
    values = {}
    for name, sides in shapes.items():
        for side, shape in zip("ab", sides, strict=True):
            path = f"{name.replace('__', '/')}/lora/{side}"
            values[path] = rng.normal(size=shape).astype(np.float32)
    groups = dict.fromkeys(values, "lora")
    method = lora_jax.lora(".*", rank=rank, alpha=2 * rank)
    return adapters.Adapter(method, groups, values, adapters.UNKNOWN_BASE, {})


def test_as_many_layers_as_the_rank_in_a_block(tmp_path):
    """(3, inputs, 3) and (3, 3, outputs): also one layer with two input axes, by the shapes alone."""
    method = lora_jax.lora({".*/query": {}, ".*/word": {}}, rank=3, head=HEAD)
    model = randomise(method.insert(base_of("encoder"), KEY), 1)
    pairs = factor_pairs.from_adapter(saved(tmp_path, method, model))
    expected = factor_pairs.from_model(model)
    assert pairs.keys() == expected.keys()
    for path, pair in expected.items():
        np.testing.assert_array_equal(pairs[path].a, pair.a)
        np.testing.assert_array_equal(pairs[path].b, pair.b)
    assert pairs[f"{BLOCK}attention/query"].layers == 3


@pytest.mark.parametrize("name", ["layers__block__query", "encoder__layers__last_2__block__query"])
def test_block_decides(name):
    adapter = adapter_with(4, **{name: ((4, 6, 4), (4, 4, 5))})
    (pair,) = factor_pairs.from_adapter(adapter).values()
    assert (pair.a.shape, pair.b.shape) == ((4, 6, 4), (4, 4, 5))


@pytest.mark.parametrize("name", ["experts", "block__query", "my_block__query"])
def test_shapes_that_leave_it_open(name):
    """Elsewhere four maps of 6 x 5 could be one of (4 x 6) x (4 x 5), and no order is guessed."""
    path = name.replace("__", "/")
    with pytest.raises(ValueError, match=rf"the shapes of {path}, a \(4, 6, 4\) and b \(4, 4, 5\)"):
        factor_pairs.from_adapter(adapter_with(4, **{name: ((4, 6, 4), (4, 4, 5))}))


def test_stacked_experts_are_not_guessed():
    """Two layers of four experts 5 x 6 at rank 4, or two maps (4 x 5) x (4 x 6)."""
    with pytest.raises(ValueError, match="leave open which axes are layers"):
        factor_pairs.from_adapter(
            adapter_with(4, layers__block__experts=((2, 4, 5, 4), (2, 4, 4, 6)))
        )


@pytest.mark.parametrize(
    "layer",
    [
        functools.partial(nnx.Linear, 4, 3),
        functools.partial(
            nnx.Conv, 4, 1, (3, 3)
        ),  # factors of shapes (1, 3, 3, 4, 1) and (1, 1, 1)
        functools.partial(nnx.Conv, 4, 6, (3, 3), feature_group_count=2),  # as many groups as ranks
    ],
)
def test_a_model_that_is_the_layer(layer):
    method = methods.lora("", rank=2, alpha=4, too_large="cap")
    model = method.insert(layer(rngs=nnx.Rngs(0)), jax.random.key(0))
    leaves = {p: np.asarray(v) for p, v in partition.parameters(model).items() if "lora" in p}
    adapter = adapters.Adapter(method, dict.fromkeys(leaves, "lora"), leaves, "", {})
    (from_adapter,) = factor_pairs.from_adapter(adapter).items()
    (from_model,) = factor_pairs.from_model(model).items()
    assert from_adapter[0] == from_model[0] == ""
    np.testing.assert_array_equal(from_adapter[1].a, from_model[1].a)
    np.testing.assert_array_equal(from_adapter[1].b, from_model[1].b)


def test_a_model_without_adapted_layers_is_refused():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    for function in (factor_pairs.from_model, factor_pairs.base_matrices):
        with pytest.raises(ValueError, match="no adapted layer"):
            function(model)


def test_shapes_that_fit_in_one_way():
    shapes = {
        "plain": (((6, 2), (2, 5)), (1, 6, 5)),
        "from_heads": (((3, 4, 2), (2, 5)), (1, 12, 5)),
        "to_heads": (((6, 2), (2, 3, 4)), (1, 6, 12)),
        "stacked": (((3, 6, 2), (3, 2, 5)), (3, 6, 5)),
        "stacked_to_heads": (((3, 6, 2), (3, 2, 2, 4)), (3, 6, 8)),
        "two_stacks": (((3, 4, 6, 2), (3, 4, 2, 5)), (12, 6, 5)),
    }
    pairs = factor_pairs.from_adapter(adapter_with(2, **{k: v for k, (v, _) in shapes.items()}))
    for name, (_, (maps, inputs, outputs)) in shapes.items():
        assert pairs[name].a.shape == (maps, inputs, 2), name
        assert pairs[name].b.shape == (maps, 2, outputs), name


def test_factors_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match=r"the shapes of x, a \(6, 2\) and b \(3, 5\)"):
        factor_pairs.from_adapter(adapter_with(2, x=((6, 2), (3, 5))))


# --- Leaves beside the factors --------------------------------------------------------------------


def test_adapter_whose_layers_hold_more_than_factors():
    """DoRA has a magnitude beside a and b, also in the parts of a fused projection."""
    plain = adapter_with(2, query=((3, 6, 2), (3, 2, 5)), qkv=((6, 2), (2, 5)))
    values = {path.replace("qkv/lora/", "qkv/lora/q/"): v for path, v in plain.values.items()}
    magnitudes = {
        "query/lora/magnitude": np.ones((3, 5), np.float32),
        "qkv/lora/q/magnitude": np.ones(5, np.float32),
    }
    groups = dict.fromkeys(values | magnitudes, "lora")
    adapter = adapters.Adapter(plain.method, groups, values | magnitudes, "", {})
    pairs = factor_pairs.from_adapter(adapter)
    assert pairs.keys() == {"query", "qkv/q"}
    np.testing.assert_array_equal(pairs["query"].a, values["query/lora/a"])
    np.testing.assert_array_equal(pairs["qkv/q"].b[0], values["qkv/lora/q/b"])
    assert {pair.scale for pair in pairs.values()} == {2.0}


def test_model_whose_layers_hold_more_than_factors():
    model = randomise(method_of("mixed").insert(base_of("mixed"), KEY), 1)
    expected, matrices = factor_pairs.from_model(model), factor_pairs.base_matrices(model)
    model.linear.lora.magnitude = nnx.LoRAParam(jnp.ones(5))
    model.qkv.lora.last.magnitude = nnx.LoRAParam(jnp.ones(6))
    pairs = factor_pairs.from_model(model)
    assert pairs.keys() == expected.keys()
    for path, pair in expected.items():
        np.testing.assert_array_equal(pairs[path].a, pair.a)
        np.testing.assert_array_equal(pairs[path].b, pair.b)
        assert pairs[path].scale == pair.scale
    for path, weight in factor_pairs.base_matrices(model).items():
        np.testing.assert_array_equal(weight, matrices[path])


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["a", "b"])
def test_adapter_with_one_factor_of_a_pair(missing):
    adapter = adapter_with(2, value=((6, 2), (2, 5)), query=((6, 2), (2, 5)))
    del adapter.values[f"query/lora/{missing}"]
    with pytest.raises(ValueError, match=f"one factor of query; factor {missing} is missing"):
        factor_pairs.from_adapter(adapter)


def test_adapter_without_factors(tmp_path):
    method = lora_jax.head_only(HEAD)
    adapter = saved(tmp_path, method, method.insert(base_of("encoder"), KEY))
    with pytest.raises(ValueError, match=r"no LoRA factors \(its method is head_only"):
        factor_pairs.from_adapter(adapter)


def test_adapter_whose_method_does_not_name_its_factors():
    adapter = adapter_with(2, query=((6, 2), (2, 5)))
    unrelated = adapters.Adapter(lora_jax.lora("value"), {}, adapter.values, "", {})
    with pytest.raises(ValueError, match="no target of the adapter's method .* factors at query"):
        factor_pairs.from_adapter(unrelated)


def test_model_without_factors():
    with pytest.raises(ValueError, match="no adapted layer; insert a method"):
        factor_pairs.from_model(base_of("mixed"))


# --- Adapters beside each other -------------------------------------------------------------------


def pairs_of(**shapes):
    return {
        name: FactorPair(jnp.zeros((maps, inputs, rank)), jnp.zeros((maps, rank, 5)), 1.0)
        for name, (maps, inputs, rank) in shapes.items()
    }


def test_shared_layers_may_have_other_ranks():
    first = pairs_of(value=(3, 6, 2), query=(3, 6, 2), up=(3, 6, 2))
    second = pairs_of(down=(3, 9, 2), query=(3, 6, 5), value=(3, 6, 1))
    assert factor_pairs.shared(first, second) == ["value", "query"]
    assert factor_pairs.shared(first, first) == ["value", "query", "up"]


def test_nothing_shared():
    with pytest.raises(ValueError, match=r"A and B adapt no layer in common: \['up'\] and \['qu"):
        factor_pairs.shared(pairs_of(up=(3, 6, 2)), pairs_of(query=(3, 6, 2)), "A and B")


@pytest.mark.parametrize("shape", [(2, 6, 2), (3, 7, 2)])
def test_shared_name_with_another_shape(shape):
    second = re.escape(str(shape[:2]))
    message = rf"the adapters: up has .* \(3, 6\) in the first and {second} in the second"
    with pytest.raises(ValueError, match=message):
        factor_pairs.shared(pairs_of(up=(3, 6, 2)), pairs_of(up=shape))


# --- The released checkpoint (paper.md, section 6.3) ----------------------------------------------

QUERY = "4.81 3.90 3.80 4.44 4.62 4.72 5.11 6.13 6.16 6.92 7.21 6.39"
VALUE = "2.63 2.99 3.47 3.62 3.91 4.18 4.69 4.72 4.21 3.74 2.99 2.72"
SHARES = ".63 .44 .43 .39 .32 .34 .43 .69 .54 .84 .94 .99"


@pytest.fixture(scope="module")
def released(real_data, tmp_path_factory):
    """The authors' RoBERTa-base MNLI adapter as a folder of ours, with alpha = 16."""
    name = "adapters/microsoft_lora_roberta_base_mnli/roberta_base_lora_mnli.safetensors"
    if not (real_data / name).is_file():
        pytest.skip(f"{real_data / name} is missing")
    converted = from_state_dict(load_file(real_data / name), alpha=16, layers=12)
    folder = tmp_path_factory.mktemp("released")
    lora_jax.save_adapter(
        folder, converted.values, converted.groups, converted.method, adapters.UNKNOWN_BASE
    )
    return factor_pairs.from_adapter(lora_jax.load_adapter(folder))


def test_released_checkpoint_has_pairs_of_query_and_value(released):
    assert released.keys() == {f"{BLOCK}attention/query", f"{BLOCK}attention/value"}
    for pair in released.values():
        assert pair.a.shape == (12, 768, 8) and pair.b.shape == (12, 8, 768)
        assert pair.scale == 2  # 16 / 8


@pytest.mark.parametrize("name, norms", [("query", QUERY), ("value", VALUE)])
def test_norms_of_the_released_updates(released, name, norms):
    pair = released[f"{BLOCK}attention/{name}"]
    # The list is of ||B A||_F without the scale, to two decimals.
    updates = np.linalg.norm(spectra.delta_svd(pair).values, axis=1) / pair.scale
    np.testing.assert_allclose(updates, np.array(norms.split(), float), rtol=0, atol=0.00501)


def test_energy_in_the_first_direction_of_the_released_updates(released):
    values = spectra.delta_svd(released[f"{BLOCK}attention/query"]).values
    shares = np.asarray(spectra.energy(values))[:, 0]
    np.testing.assert_allclose(shares, np.array(SHARES.split(), float), rtol=0, atol=0.00501)
    np.testing.assert_allclose(spectra.stable_rank(values), 1 / shares, rtol=1e-5)
