"""Checks of methods: what they insert, what they train, what they say, and how they are stored."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import from_shapes

import lora_jax
from lora_jax import methods, patterns
from lora_jax.data.batch import Inputs
from lora_jax.low_rank import layers
from lora_jax.models.encoder import Classifier, EncoderConfig

ZEROS = nnx.initializers.zeros


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(8, 8, rngs=rngs, kernel_init=ZEROS)
        self.key = nnx.Linear(8, 8, rngs=rngs, kernel_init=ZEROS)
        self.value = nnx.Linear(8, 8, rngs=rngs, kernel_init=ZEROS)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = Attention(rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.qkv = nnx.Linear(8, 24, rngs=rngs, use_bias=False, kernel_init=ZEROS)


class Model(nnx.Module):
    """Two blocks in a list (integer keys in their paths), an embedding, a norm and a head."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 8, rngs=rngs, embedding_init=ZEROS)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs, kernel_init=ZEROS)

    def __call__(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            a = block.attention
            x = block.norm(x + jnp.tanh(a.query(x) * a.key(x)) + a.value(x))
            x = x + block.qkv(x)[..., :8]
        return self.head(x)


@pytest.fixture
def model():
    model = Model(nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        variable[...] = jnp.asarray(0.3 * rng.normal(size=variable.shape), jnp.float32)
    return model


KEY = jax.random.key(0, impl="rbg")
BASE = {
    "embed/embedding": (20, 8),
    **{
        f"blocks/{i}/{leaf}": shape
        for i in (0, 1)
        for leaf, shape in {
            "attention/query/kernel": (8, 8),
            "attention/query/bias": (8,),
            "attention/key/kernel": (8, 8),
            "attention/key/bias": (8,),
            "attention/value/kernel": (8, 8),
            "attention/value/bias": (8,),
            "norm/scale": (8,),
            "norm/bias": (8,),
            "qkv/kernel": (8, 24),
        }.items()
    },
    "head/kernel": (8, 3),
    "head/bias": (3,),
}
BIASES = {path for path in BASE if path.endswith("bias")}


def tree(model):
    return {path: tuple(value.shape) for path, value in lora_jax.parameters(model).items()}


def trained(labels):
    """The leaves that train, by group."""
    return {path: group for path, group in labels.items() if group != lora_jax.FROZEN}


def test_lora_inserts_this_tree(model):
    method = lora_jax.lora(r".*/(query|value)", rank=2, head="head/.*")
    adapted = method.insert(model, KEY)
    assert tree(adapted) == {
        **BASE,
        "blocks/0/attention/query/lora/a": (8, 2),
        "blocks/0/attention/query/lora/b": (2, 8),
        "blocks/0/attention/value/lora/a": (8, 2),
        "blocks/0/attention/value/lora/b": (2, 8),
        "blocks/1/attention/query/lora/a": (8, 2),
        "blocks/1/attention/query/lora/b": (2, 8),
        "blocks/1/attention/value/lora/a": (8, 2),
        "blocks/1/attention/value/lora/b": (2, 8),
    }
    labels = method.labels(adapted)
    assert labels.keys() == tree(adapted).keys()
    assert trained(labels) == {
        "blocks/0/attention/query/lora/a": "lora",
        "blocks/0/attention/query/lora/b": "lora",
        "blocks/0/attention/value/lora/a": "lora",
        "blocks/0/attention/value/lora/b": "lora",
        "blocks/1/attention/query/lora/a": "lora",
        "blocks/1/attention/query/lora/b": "lora",
        "blocks/1/attention/value/lora/a": "lora",
        "blocks/1/attention/value/lora/b": "lora",
        "head/kernel": "head",
        "head/bias": "head",
    }


def test_fused_lora_inserts_this_tree(model):
    method = lora_jax.lora(
        {r".*/qkv": {"parts": ["q", "v"], "fused": ["q", "k", "v"], "rank": 2}},
    )
    adapted = method.insert(model, KEY)
    new = {
        f"blocks/{i}/qkv/lora/{part}/{factor}": shape
        for i in (0, 1)
        for part in "qv"
        for factor, shape in (("a", (8, 2)), ("b", (2, 8)))
    }
    assert tree(adapted) == {**BASE, **new}
    assert trained(method.labels(adapted)) == dict.fromkeys(new, "lora")


def test_full_labels(model):
    assert trained(lora_jax.full().labels(model)) == dict.fromkeys(BASE, "base")
    assert trained(lora_jax.full(head="head/.*").labels(model)) == {
        **dict.fromkeys(BASE, "base"),
        "head/kernel": "head",
        "head/bias": "head",
    }


def test_head_only_labels(model):
    assert trained(lora_jax.head_only("head/.*").labels(model)) == {
        "head/kernel": "head",
        "head/bias": "head",
    }


def test_bitfit_labels(model):
    assert trained(lora_jax.bitfit().labels(model)) == dict.fromkeys(BIASES, "bias")
    assert trained(lora_jax.bitfit(head="head/.*").labels(model)) == {
        **dict.fromkeys(BIASES, "bias"),
        "head/kernel": "head",
        "head/bias": "head",
    }


@pytest.mark.parametrize(
    "bias, biases",
    [
        ("none", set()),
        ("all", BIASES),
        ("lora_only", {f"blocks/{i}/attention/query/bias" for i in (0, 1)}),
    ],
)
def test_lora_bias_labels(model, bias, biases):
    method = lora_jax.lora(r".*/query", rank=2, bias=bias)
    expected = dict.fromkeys(biases, "bias")
    for i in (0, 1):
        for factor in "ab":
            expected[f"blocks/{i}/attention/query/lora/{factor}"] = "lora"
    assert trained(method.labels(method.insert(model, KEY))) == expected


def test_lora_only_bias_of_layers_some_of_which_have_none(model):
    """`qkv` has no bias; those of the other adapted layers train all the same."""
    method = lora_jax.lora([r".*/query", r".*/qkv"], rank=2, bias="lora_only")
    labels = method.labels(method.insert(model, KEY))
    assert {path for path, group in labels.items() if group == "bias"} == {
        "blocks/0/attention/query/bias",
        "blocks/1/attention/query/bias",
    }


@pytest.mark.parametrize("base_bias", ["lora_only", "all"])
def test_head_bias_belongs_to_the_head(model, base_bias):
    method = lora_jax.lora(r".*/query", rank=2, bias=base_bias, head="head/.*")
    assert method.labels(method.insert(model, KEY))["head/bias"] == "head"


def test_lora_labels_without_insertion_are_refused(model):
    """tunix falls back to full fine-tuning without a word when no factor is found."""
    with pytest.raises(ValueError, match="'lora' rule .* matches no path"):
        lora_jax.lora(r".*/query", rank=2).labels(model)


# --- Rules that match nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [r".*/querry", r"blocks/\d/attention/querry", "uery", "quer.*"])
def test_target_that_matches_nothing_shows_the_nearest_paths(model, pattern):
    before = tree(model)
    with pytest.raises(ValueError) as error:
        lora_jax.lora(pattern, rank=2).insert(model, KEY)
    text = str(error.value)
    assert repr(pattern) in text and "matches no path" in text
    assert "blocks/0/attention/query" in text
    assert tree(model) == before


def test_every_target_must_match(model):
    with pytest.raises(ValueError, match=r"'\.\*/vallue' matches no path"):
        lora_jax.lora([r".*/query", r".*/vallue"], rank=2).insert(model, KEY)


@pytest.mark.parametrize(
    "method",
    [
        lora_jax.lora(r".*/query", rank=2, head="classifier/.*"),
        lora_jax.full(head="classifier/.*"),
        lora_jax.head_only("classifier/.*"),
        lora_jax.bitfit(head="classifier/.*"),
    ],
    ids=lambda method: method.name,
)
def test_head_that_matches_nothing_is_refused(model, method):
    with pytest.raises(ValueError, match=r"'classifier/\.\*' matches no path"):
        method.labels(method.insert(model, KEY))


def test_nearest_path_of_a_typo_comes_first():
    paths = ["embed", "blocks/0/attention/value", "blocks/0/attention/query", "head"]
    assert patterns.nearest(r".*/querry", paths)[0] == "blocks/0/attention/query"
    assert patterns.nearest(r"heads", paths)[0] == "head"


def test_target_that_is_no_supported_layer_is_refused(model):
    with pytest.raises(TypeError, match=r"blocks/0/attention is a .*Attention.*Supported"):
        lora_jax.lora(r"blocks/\d/attention", rank=2).insert(model, KEY)


# --- Arguments ------------------------------------------------------------------------------------


def test_targets_have_arguments_of_their_own(model):
    method = lora_jax.lora(
        {
            r"blocks/0/.*/query": {"rank": 4},
            r".*/query": {},
            r".*/value": {"alpha": 3, "scaling": "alpha/sqrt(r)", "dropout": 0.2},
            "embed": {"rank": 1, "alpha": None, "init": "gaussian"},
        },
        rank=2,
        alpha=16,
    )
    adapted = method.insert(model, KEY)
    got = {
        path: (layer.lora.rank, layer.lora.alpha, layer.lora.scale, layer.lora.dropout)
        for path, layer in layers.adapted_layers(adapted).items()
    }
    root = 3 / 2**0.5
    assert got == {
        "blocks/0/attention/query": (4, 16.0, 4.0, 0.0),  # the first match wins
        "blocks/1/attention/query": (2, 16.0, 8.0, 0.0),
        "blocks/0/attention/value": (2, 3.0, pytest.approx(root), 0.2),
        "blocks/1/attention/value": (2, 3.0, pytest.approx(root), 0.2),
        "embed": (1, 1.0, 1.0, 0.0),
    }


@pytest.mark.parametrize("rank, alpha, scale", [(4, None, 1.0), (4, 16, 4.0), (8, 4, 0.5)])
def test_default_alpha_is_the_rank(model, rank, alpha, scale):
    adapted = lora_jax.lora(r".*/query", rank=rank, alpha=alpha).insert(model, KEY)
    assert adapted.blocks[0].attention.query.lora.scale == scale


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "rank"),
        ({"rank": -1}, "rank"),
        ({"rank": True}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"rank": "8"}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": -2}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"scaling": "alpha"}, "scaling"),
        ({"init": "xavier"}, "init"),
        ({"bias": "some"}, "bias"),
        ({"bias": True}, "bias"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        lora_jax.lora(r".*/query", **arguments)


@pytest.mark.wrong_types
@pytest.mark.parametrize("own", [{"rank": True}, {"rank": 0}, {"alpha": -1}, {"scaling": "x"}])
def test_bad_arguments_of_one_target_are_refused(own):
    with pytest.raises(ValueError):
        lora_jax.lora({r".*/query": own})


def test_unknown_argument_of_a_target_is_refused():
    with pytest.raises(ValueError, match=r"unknown \['ranks'\]; known are .*'rank'"):
        lora_jax.lora({r".*/query": {"ranks": 4}})


@pytest.mark.parametrize("targets", [(), [], {}])
def test_no_target_is_refused(targets):
    with pytest.raises(ValueError, match="at least one target"):
        lora_jax.lora(targets)


def test_rank_larger_than_a_matched_matrix_names_the_layer(model):
    with pytest.raises(ValueError, match=r"rank 9 .* blocks/0/attention/query.* from 1 to 8"):
        lora_jax.lora([r".*/query"], rank=9).insert(model, KEY)


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'lroa'.*'bitfit', 'full'.*'lora'"):
        methods.create("lroa", targets="x")


def test_unknown_argument_of_a_method_is_refused():
    with pytest.raises(TypeError, match="ranks"):
        methods.create("lora", targets="x", ranks=4)
    with pytest.raises(TypeError, match=r"'adapter_d' takes .*missing \['layers'\]"):
        methods.create("adapter_d", size=4)


def test_a_second_method_by_name():
    first = {"name": "lora", "targets": ".*/query", "rank": 2, "head": "head/.*"}
    method = methods.create(**first, plus={"name": "bitfit"})
    assert method == lora_jax.lora(".*/query", rank=2, head="head/.*") + lora_jax.bitfit()
    with pytest.raises(ValueError, match="unknown method 'bitfat'; .*, did you mean 'bitfit'"):
        methods.create(**first, plus={"name": "bitfat"})


def test_methods_print_themselves():
    method = lora_jax.lora({".*/qkv": {"parts": ("q",), "fused": ("q", "k")}}, rank=2, alpha=3)
    assert str(method + lora_jax.adapter_p(4, head="head/.*")) == (
        "lora('.*/qkv': rank=2, alpha=3, scaling=alpha/r, init=kaiming, std=0.02, dropout=0.0, "
        "parts=['q'], fused=['q', 'k'], bias=none) + adapter_p(size=4, activation=relu, std=0.02, "
        "targets=(.*/)?feed_forward, head=head/.*)"
    )
    assert str(lora_jax.full()) == "full()"


# --- Insertion ------------------------------------------------------------------------------------


def test_insert_leaves_the_model_as_it_is_and_shares_its_arrays(model):
    before = lora_jax.parameters(model)
    graphdef = nnx.graphdef(model)
    bits = {path: np.asarray(value).tobytes() for path, value in before.items()}
    adapted = lora_jax.lora([r".*/query", "embed"], rank=2).insert(model, KEY)
    assert nnx.graphdef(model) == graphdef and not layers.adapted_layers(model)
    after, own = lora_jax.parameters(model), lora_jax.parameters(adapted)
    for path, value in after.items():
        assert np.asarray(value).tobytes() == bits[path]
        assert value.unsafe_buffer_pointer() == own[path].unsafe_buffer_pointer()
    ids = jnp.arange(20)
    np.testing.assert_array_equal(adapted(ids), model(ids))
    adapted.embed.embedding[...] = adapted.embed.embedding[...] + 1  # the Variables are not shared
    assert np.asarray(lora_jax.parameters(model)["embed/embedding"]).tobytes() == bits[
        "embed/embedding"
    ]  # fmt: skip


def test_insert_is_a_function_of_the_key_and_the_path(model):
    method = lora_jax.lora(r".*/(query|value)", rank=2)
    first, again, other = (
        lora_jax.parameters(method.insert(model, jax.random.key(seed))) for seed in (1, 1, 2)
    )
    a = [path for path in first if path.endswith("lora/a")]
    assert len(a) == 4
    for path in a:
        np.testing.assert_array_equal(first[path], again[path])
        assert not np.isin(first[path], other[path]).any()
    for i, path in enumerate(a):
        for before in a[:i]:
            assert not np.isin(first[path], first[before]).any(), "layers start with equal values"


def test_convolutions_start_differently_and_with_the_roles_of_dense_layers():
    """lorax draws every convolution from one key, and swaps A and B between dense and conv."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Conv(4, 4, (3, 3), rngs=rngs, kernel_init=ZEROS)
            self.two = nnx.Conv(4, 4, (3, 3), rngs=rngs, kernel_init=ZEROS)
            self.dense = nnx.Linear(4, 4, rngs=rngs, kernel_init=ZEROS)

    net = lora_jax.lora("one|two|dense", rank=2).insert(Net(nnx.Rngs(0)), KEY)
    assert not np.isin(net.one.lora.a[...], net.two.lora.a[...]).any()
    for layer in (net.one, net.two, net.dense):
        assert np.all(layer.lora.a[...] != 0) and not np.any(layer.lora.b[...])


def test_adapting_twice_is_refused(model):
    method = lora_jax.lora(r".*/query", rank=2)
    with pytest.raises(ValueError, match=r"attention/query is adapted already"):
        method.insert(method.insert(model, KEY), KEY)
    with pytest.raises(ValueError, match="adapted already"):
        (method + lora_jax.lora(r"blocks/0/.*/query", rank=2)).insert(model, KEY)


def test_insert_works_on_an_abstract_model():
    method = lora_jax.lora(r".*/(query|qkv)", rank=2, head="head/.*")
    abstract = nnx.eval_shape(lambda: method.insert(Model(nnx.Rngs(0)), KEY))
    concrete = method.insert(Model(nnx.Rngs(0)), KEY)
    assert isinstance(lora_jax.parameters(abstract)["embed/embedding"], jax.ShapeDtypeStruct)
    assert tree(abstract) == tree(concrete)
    assert method.labels(abstract) == method.labels(concrete)
    assert method.summary(abstract) == method.summary(concrete)
    already = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    assert tree(nnx.eval_shape(lambda m: method.insert(m, KEY), already)) == tree(concrete)


def test_insert_under_jit_equals_eager(model):
    method = lora_jax.lora([r".*/query", "embed"], rank=2)
    eager = lora_jax.parameters(method.insert(model, KEY))
    graphdef, state = nnx.split(model)
    jitted = jax.jit(lambda s: lora_jax.parameters(method.insert(nnx.merge(graphdef, s), KEY)))(
        state
    )
    assert eager.keys() == jitted.keys()
    for path, value in eager.items():
        np.testing.assert_allclose(jitted[path], value, rtol=1e-6)


def test_layer_that_is_the_whole_model():
    method = lora_jax.lora("", rank=2, bias="lora_only")
    adapted = method.insert(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), KEY)
    assert method.labels(adapted) == {
        "kernel": "frozen", "bias": "bias", "lora/a": "lora", "lora/b": "lora",
    }  # fmt: skip


# --- Combination, description and summary ---------------------------------------------------------


def test_methods_combine(model):
    method = (
        lora_jax.lora(r".*/query", rank=2, head="head/.*")
        + lora_jax.lora({r".*/value": {"rank": 4}}, alpha=8)
        + lora_jax.bitfit()
    )
    assert method.name == "lora+lora+bitfit"
    adapted = method.insert(model, KEY)
    assert adapted.blocks[1].attention.query.lora.rank == 2
    assert adapted.blocks[1].attention.value.lora.scale == 2.0
    labels = method.labels(adapted)
    groups = {g: {p for p, own in labels.items() if own == g} for g in set(labels.values())}
    assert groups["head"] == {"head/kernel", "head/bias"}
    assert groups["bias"] == BIASES - {"head/bias"}
    assert len(groups["lora"]) == 8
    how = [row.how for row in method.summary(adapted).layers]
    plain = "dropout 0"
    assert (
        how
        == [f"rank 2, alpha 2, scale 1 (alpha/r), {plain}"] * 2
        + [f"rank 4, alpha 8, scale 2 (alpha/r), {plain}"] * 2
    )


JSON_CASES = [
    lora_jax.full(),
    lora_jax.full(head="head/.*"),
    lora_jax.head_only("head/.*"),
    lora_jax.bitfit(head="head/.*"),
    lora_jax.lora(r".*/query"),
    lora_jax.lora([r".*/query", r".*/value"], rank=4, alpha=16.0, dropout=0.1, bias="all"),
    lora_jax.lora(
        r".*/query", scaling="alpha/sqrt(r)", init="gaussian", std=0.01, bias="lora_only",
        head="head/.*",
    ),
    lora_jax.lora({r".*/query": {"rank": 4}, r".*/value": {"alpha": 2}}, rank=2),
    lora_jax.lora(
        {
            r".*/qkv": {
                "parts": ("q", "v"), "fused": ("q", "k", "v"), "fused_sizes": (8, 8, 8), "rank": 2,
            }
        }
    ),
    lora_jax.lora(r".*/query", rank=2, head="head/.*") + lora_jax.bitfit(),
]  # fmt: skip


@pytest.mark.parametrize("method", JSON_CASES, ids=range(len(JSON_CASES)))
def test_json_round_trip(model, method):
    again = methods.from_json(json.loads(json.dumps(method.to_json())))
    assert again == method
    assert again.to_json() == method.to_json()
    first, second = (m.insert(model, KEY) for m in (method, again))
    assert nnx.graphdef(first) == nnx.graphdef(second)
    assert method.labels(first) == again.labels(second)


@pytest.mark.parametrize(
    "arguments", [{"rank": np.int64(4)}, {"alpha": np.float32(2)}, {"dropout": np.float64(0.5)}]
)
def test_numpy_arguments_can_be_stored(arguments):
    """Sweeps over `np.arange` and the like hand such numbers over."""
    method = lora_jax.lora(r".*/query", **arguments)
    assert methods.from_json(json.loads(json.dumps(method.to_json()))) == method
    own = lora_jax.lora({r".*/query": arguments})
    assert methods.from_json(json.loads(json.dumps(own.to_json()))) == own


def test_unknown_method_in_a_description_is_refused():
    with pytest.raises(ValueError, match="unknown method 'dora'"):
        methods.from_json([{"name": "dora", "arguments": {}}])


def test_summary_counts_by_group(model):
    method = lora_jax.lora(r".*/(query|value)", rank=2, alpha=4, bias="all", head="head/.*")
    summary = method.summary(method.insert(model, KEY))
    base = sum(int(np.prod(shape)) for shape in BASE.values())
    head, biases = 8 * 3 + 3, 2 * 4 * 8
    assert summary.counts() == {
        "lora": 4 * (8 * 2 + 2 * 8),
        "bias": biases,
        "head": head,
        "frozen": base - biases - head,
        "trainable": 128 + biases + head,
        "total": base + 128,
    }
    assert {group.name: group.leaves for group in summary.groups} == {
        "bias": 8, "head": 2, "lora": 8, "frozen": 11,
    }  # fmt: skip
    assert all(group.bytes == 4 * group.parameters for group in summary.groups)
    assert sum(row.parameters for row in summary.layers) == summary.counts()["lora"]


def test_summary_text(model):
    method = lora_jax.lora(
        {
            r".*/query": {"rank": 2},
            r".*/qkv": {
                "rank": 4, "alpha": 32, "scaling": "alpha/sqrt(r)", "parts": ("q", "v"),
                "fused": ("q", "k", "v"),
            },
        },
        alpha=5,
        dropout=0.1,
        head="head/.*",
    )  # fmt: skip
    text = str(method.summary(method.insert(model, KEY)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "method lora",
        "rule layer weight how parameters",
        ".*/query blocks/0/attention/query 8x8 rank 2, alpha 5, scale 2.5 (alpha/r), dropout 0.1 32",
        ".*/qkv blocks/0/qkv 8x24 rank 4, alpha 32, scale 16 (alpha/sqrt(r)), dropout 0.1, q,v of q,k,v 128",
        ".*/query blocks/1/attention/query 8x8 rank 2, alpha 5, scale 2.5 (alpha/r), dropout 0.1 32",
        ".*/qkv blocks/1/qkv 8x24 rank 4, alpha 32, scale 16 (alpha/sqrt(r)), dropout 0.1, q,v of q,k,v 128",
        "group leaves parameters bytes",
        "head 2 27 108 B",
        "lora 12 320 1.2 KiB",
        "frozen 19 1,008 3.9 KiB",
        "trainable 347 of 1,355 parameters (25.6%), 1.4 KiB",
    ]


@pytest.mark.parametrize("method", [lora_jax.full(), lora_jax.head_only("head/.*")])
def test_summary_of_methods_without_insertion(model, method):
    summary = method.summary(model)
    assert summary.layers == () and str(summary).startswith(f"method {method.name}")
    counts = summary.counts()
    assert counts["trainable"] + counts["frozen"] == counts["total"] == 1035


def test_bytes_follow_the_types(model):
    for _, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        variable.set_raw_value(variable[...].astype(jnp.bfloat16))
    method = lora_jax.lora(r".*/query", rank=2)
    groups = {group.name: group for group in method.summary(method.insert(model, KEY)).groups}
    assert groups["frozen"].bytes == 2 * groups["frozen"].parameters
    assert groups["lora"].bytes == 4 * groups["lora"].parameters


# --- The project's encoder ------------------------------------------------------------------------


def test_lora_on_the_stacked_encoder():
    config = EncoderConfig(
        "bert",
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        type_vocab_size=2,
    )
    base = from_shapes(lambda: Classifier(config, 3, nnx.Rngs(0)))
    method = lora_jax.lora(r".*/(query|value)", rank=4, alpha=8, dropout=0.1, head="head/.*")
    adapted = method.insert(base, KEY)
    block = "encoder/layers/block/attention"
    assert {path: shape for path, shape in tree(adapted).items() if "lora" in path} == {
        f"{block}/query/lora/a": (3, 16, 4),
        f"{block}/query/lora/b": (3, 4, 16),
        f"{block}/value/lora/a": (3, 16, 4),
        f"{block}/value/lora/b": (3, 4, 16),
    }
    assert trained(method.labels(adapted)) == {
        f"{block}/query/lora/a": "lora",
        f"{block}/query/lora/b": "lora",
        f"{block}/value/lora/a": "lora",
        f"{block}/value/lora/b": "lora",
        "head/output/kernel": "head",
        "head/output/bias": "head",
    }
    a = np.asarray(adapted.encoder.layers.block.attention.query.lora.a[...])
    assert np.abs(a).max() > 0.9 * 16**-0.5  # not sqrt(3) smaller
    assert not np.isin(a[0], a[1]).any() and not np.isin(a[0], a[2]).any()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 30, (2, 8)), jnp.int32)
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    batch = (Inputs(tokens, ones, positions, 0 * ones), jnp.arange(2), jnp.zeros(2, jnp.int32))
    run = jax.jit(lambda m, batch: m(*batch))
    np.testing.assert_array_equal(run(adapted, batch), run(base, batch))
