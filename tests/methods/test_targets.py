"""Checks of what targets name, and of what narrows them: names, types, all-linear, exclude, layers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hf_like import ATTENTION, FEED_FORWARD, LAYERS, WIDTH, CausalLM, paths

import lora_jax as lj
from lora_jax import methods
from lora_jax.low_rank import layers

KEY = jax.random.key(0)


def abstract(make=CausalLM):
    return nnx.eval_shape(make)


def inserted(method, model):
    return nnx.eval_shape(lambda m: method.insert(m, KEY), model)


def adapted_paths(method, model=None):
    """What the method adapts; its summary must say the same."""
    adapted = inserted(method, abstract() if model is None else model)
    found = set(layers.adapted_layers(adapted))
    assert {row.path for row in method.summary(adapted).layers} == found
    return found


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("q_proj", paths("q_proj")),
        ("self_attn/q_proj", paths("q_proj")),
        (["q_proj", "mlp/up_proj"], paths("q_proj", "up_proj")),
        ("model/layers/1/mlp/up_proj", paths("up_proj", layers=[1])),
        (r".*/(q|v)_proj", paths("q_proj", "v_proj")),
        ({"q_proj": {"rank": 1}, r".*_proj": {}}, paths(*ATTENTION, *FEED_FORWARD)),
    ],
)
def test_last_names_of_a_path_and_patterns(targets, expected):
    assert adapted_paths(lj.lora(targets, rank=2)) == expected


@pytest.mark.parametrize(
    "target", ["proj", "_proj", "attn/q_proj", "mlp/q_proj", "q_proj/", "/q_proj"]
)
def test_a_name_ends_a_path_at_a_border_of_its_components(target):
    with pytest.raises(
        ValueError, match=rf"'{target}' matches no path.*last names.*Nearest paths:\n"
    ):
        lj.lora(target, rank=2).insert(abstract(), KEY)


def test_a_whole_path_wins_over_ends_of_paths():
    def make():
        inner = nnx.Dict(query=nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
        return nnx.Dict(query=nnx.Linear(4, 4, rngs=nnx.Rngs(0)), inner=inner)

    model = abstract(make)
    assert adapted_paths(lj.lora("query", rank=2), model) == {"query"}
    assert adapted_paths(lj.lora("inner/query", rank=2), model) == {"inner/query"}
    assert adapted_paths(lj.lora(r"(.*/)?query", rank=2), model) == {"query", "inner/query"}


def test_names_find_the_place_of_other_methods_too():
    found = methods.common.matching(abstract(), "embed_tokens", "word embedding")
    assert set(found) == {"model/embed_tokens"}


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"'\.\*/\(q_proj' is no regular expression: missing \)"):
        lj.lora(".*/(q_proj", rank=2).insert(abstract(), KEY)


# --- Types ----------------------------------------------------------------------------------------


class Linear(nnx.Linear):
    """Has the name of Flax's own."""


class Mine(nnx.Linear):
    pass


@pytest.fixture
def registry(registry):
    def add(kind, **attributes):
        body = {
            "roles": lambda self: lj.Contraction(batch=(), inputs=(0,), outputs=(1,)),
            "low_rank_output": lambda self, inputs, a, b: inputs @ a @ b,
        }
        form = type(nnx.Linear)(f"LoRA{kind.__name__}", (lj.LoRALayer, kind), body | attributes)
        return lj.register(kind)(form)

    return add


def mixed(rngs=None):
    rngs = rngs or nnx.Rngs(0)
    return nnx.Dict(
        table=nnx.Embed(6, 4, rngs=rngs),
        conv=nnx.Conv(4, 4, (3,), rngs=rngs),
        general=nnx.LinearGeneral(4, (2, 2), rngs=rngs),
        einsum=nnx.Einsum("bi,io->bo", (4, 4), rngs=rngs),
        plain=nnx.Linear(4, 4, rngs=rngs),
        mine=Mine(4, 4, rngs=rngs),
    )


@pytest.mark.parametrize(
    "targets, expected",
    [
        (nnx.Linear, {"plain"}),
        ("type:Linear", {"plain"}),
        ([nnx.Conv, nnx.Embed], {"conv", "table"}),
        (["type:Einsum", "general"], {"einsum", "general"}),
        ({nnx.Linear: {"rank": 1}, "conv": {}}, {"plain", "conv"}),
        (Mine, {"mine"}),
        ("type:Mine", {"mine"}),
    ],
)
def test_types(targets, expected, registry):
    registry(Mine)
    method = lj.lora(targets, rank=2)
    assert adapted_paths(method, abstract(mixed)) == expected
    again = methods.from_json(json.loads(json.dumps(method.to_json())))
    assert again == method and adapted_paths(again, abstract(mixed)) == expected


def test_types_are_stored_by_name():
    assert list(lj.lora([nnx.Linear, Mine, Linear]).spec[0][1]["targets"]) == [
        "type:Linear", "type:Mine", f"type:{__name__}.Linear",
    ]  # fmt: skip


def test_a_type_that_the_model_has_not_lists_those_it_has():
    says = (
        rf"'type:Conv' names no module.*classes are .*linear\.Linear, .*{__name__}\.|hf_like\.Layer"
    )
    with pytest.raises(ValueError, match=says):
        lj.lora(nnx.Conv, rank=2).insert(abstract(), KEY)


def test_classes_with_one_name(registry):
    class Other(nnx.Linear):
        pass

    first = Other

    class Other(nnx.Linear):
        pass

    first.__module__ = "elsewhere"
    registry(first), registry(Other)
    rngs = nnx.Rngs(0)
    model = nnx.Dict(one=first(3, 3, rngs=rngs), two=Other(3, 3, rngs=rngs))
    with pytest.raises(
        ValueError, match=r"'type:Other' names several classes, elsewhere\.test_.*with its"
    ):
        lj.lora(Other, rank=2).insert(model, KEY)
    method = lj.lora(f"type:elsewhere.{first.__qualname__}", rank=2)
    assert adapted_paths(method, model) == {"one"}


def test_a_type_without_a_lora_layer_is_refused():
    with pytest.raises(
        TypeError, match=r"model/layers/0/norm is a flax.*LayerNorm, for which there is no"
    ):
        lj.lora(nnx.LayerNorm, rank=2).insert(abstract(), KEY)


# --- All linear layers ----------------------------------------------------------------------------


def reasons(method, model):
    summary = method.summary(inserted(method, model))
    for row in summary.skipped:
        assert any(row.path in line and row.reason in line for line in str(summary).splitlines())
    return {row.path: row.reason for row in summary.skipped}


def test_all_linear_of_a_language_model():
    method = lj.lora("all-linear", rank=2)
    assert adapted_paths(method) == paths(*ATTENTION, *FEED_FORWARD)
    assert set(reasons(method, abstract())) == {"lm_head"}
    assert "head" in reasons(method, abstract())["lm_head"]
    both = lj.lora(["lm_head", "all-linear"], rank=2)  # of its own, the head is a target
    assert adapted_paths(both) == {"lm_head"} | paths(*ATTENTION, *FEED_FORWARD)


def test_all_linear_means_registered_layers_but_tables_and_convolutions(registry):
    model = abstract(mixed)
    assert adapted_paths(lj.lora("all-linear", rank=2), model) == {"general", "einsum", "plain"}
    registry(Mine)
    method = lj.lora("all-linear", rank=2)
    assert adapted_paths(method, model) == {"general", "einsum", "plain", "mine"}
    for attribute in ({"gathers": True}, {"in_all_linear": False}):
        registry(Mine, **attribute)
        assert adapted_paths(method, model) == {"general", "einsum", "plain"}


def test_all_linear_lists_what_can_have_no_update():
    def make():
        rngs = nnx.Rngs(0)
        model = nnx.Dict(
            plain=nnx.Linear(4, 4, rngs=rngs),
            narrow=nnx.Linear(4, 1, rngs=rngs),
            whole=nnx.Linear(
                4, 4, param_dtype=jnp.int8, kernel_init=nnx.initializers.ones, rngs=rngs
            ),
            late=nnx.Einsum("bi,io->bo", (4, 4), rngs=rngs),
            tied=nnx.Linear(4, 4, use_bias=False, rngs=rngs),
            classifier=nnx.Dict(dense=nnx.Linear(4, 4, rngs=rngs)),
            final=nnx.Linear(4, 2, rngs=rngs),
            layers=nnx.List([nnx.Dict(score=nnx.Linear(4, 4, rngs=rngs))]),
        )
        model["late"].einsum_str = None  # it gets one with every call
        model["twin"] = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        model["twin"].kernel = model["tied"].kernel
        return model

    model = abstract(make)
    method = lj.lora("all-linear", rank=2, head="final/.*")
    assert adapted_paths(method, model) == {"plain", "layers/0/score"}
    found = reasons(method, model)
    expected = {
        "narrow": "rank 2 is larger than its smaller side, 1", "whole": "int8", "late": "einsum_str",
        "tied": "tied/kernel and twin/kernel are one Variable", "twin": "one Variable",
        "classifier/dense": "task head, as its name says", "final": "task head, as head='final/.*' says",
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for path, text in expected.items():
        assert text in found[path]
    for path, says in (("whole", "int8"), ("late", "einsum_str"), ("tied", "are one Variable")):
        with pytest.raises(ValueError, match=says):  # named, they are errors
            lj.lora(path, rank=2).insert(model, KEY)


def test_a_layer_that_is_used_twice_is_one_layer():
    class Twice(nnx.Module):
        def __init__(self):
            self.one = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.two = self.one

    assert adapted_paths(lj.lora("all-linear", rank=2), abstract(Twice)) == {"one"}


def test_a_model_without_linear_layers():
    model = nnx.Dict(norm=nnx.LayerNorm(3, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match="'all-linear' finds no linear layer; .*normalization.LayerNorm"
    ):
        lj.lora("all-linear").insert(model, KEY)


def test_step_0_and_merging_of_all_linear_layers():
    model = CausalLM()
    method = lj.lora("all-linear", rank=4, alpha=8, too_large="cap")
    adapted, ids = method.insert(model, KEY), jnp.arange(6)
    np.testing.assert_array_equal(adapted(ids), model(ids))
    for number, pair in enumerate(layers.factor_pairs(adapted).values()):
        pair.b[...] = 0.3 * jax.random.normal(jax.random.key(number), pair.b.shape)
    assert np.abs(adapted(ids) - model(ids)).max() > 0.1
    np.testing.assert_allclose(lj.merge(adapted)(ids), adapted(ids), rtol=2e-5, atol=2e-5)


# --- Exclusions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exclude, gone",
    [
        ("k_proj", paths("k_proj")),
        (
            ["k_proj", r".*/layers/0/.*"],
            paths("k_proj") | paths(*ATTENTION, *FEED_FORWARD, layers=[0]),
        ),
        ("lm_head", set()),  # a head already: said twice is no error
    ],
)
def test_exclude(exclude, gone):
    method = lj.lora("all-linear", rank=2, exclude=exclude)
    assert adapted_paths(method) == paths(*ATTENTION, *FEED_FORWARD) - gone
    assert methods.from_json(json.loads(json.dumps(method.to_json()))) == method


def test_exclude_a_type(registry):
    registry(Mine)
    method = lj.lora("all-linear", rank=2, exclude=(nnx.Einsum, Mine))
    assert adapted_paths(method, abstract(mixed)) == {"general", "plain"}


@pytest.mark.parametrize(
    "exclude, says",
    [
        ("kproj", "the exclude rule 'kproj' matches no path.*Nearest paths:\n"),
        ("type:Conv", "the exclude 'type:Conv' names no module"),
        (
            "up_proj",
            "the exclude rule 'up_proj' excludes nothing: no target names model/layers/0/mlp/up",
        ),
        ("mlp", "'mlp' excludes nothing: .*does not stand for what it holds.*'\\.\\*/decoder/"),
        (".*", "the target 'q_proj' has no layer left: .*model/layers/0/self_attn/q_proj"),
    ],
)
def test_exclusions_without_effect_are_errors(exclude, says):
    with pytest.raises(ValueError, match=says):
        lj.lora("q_proj", rank=2, exclude=exclude).insert(abstract(), KEY)


# --- Numbers of layers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, expected",
    [
        (0, [0]),
        ([0, 2], [0, 2]),
        (-1, [2]),
        ([-3, -1], [0, 2]),
        (range(2), [0, 1]),
        (np.int64(1), [1]),
    ],
)
def test_layers(numbers, expected):
    method = lj.lora(["q_proj", "up_proj"], rank=2, layers=numbers)
    assert adapted_paths(method) == paths("q_proj", "up_proj", layers=expected)
    assert methods.from_json(json.loads(json.dumps(method.to_json()))) == method


def test_layers_outside_a_list_have_no_number():
    method = lj.lora(["embed_tokens", "q_proj"], rank=2, layers=0)
    with pytest.raises(
        ValueError, match="'embed_tokens' has no layer left: `exclude` or `layers` leave"
    ):
        method.insert(abstract(), KEY)


def test_every_list_counts_its_own_layers():
    def make():
        rngs = nnx.Rngs(0)
        stack = lambda n: nnx.List([nnx.Dict(q=nnx.Linear(2, 2, rngs=rngs)) for _ in range(n)])  # noqa: E731
        return nnx.Dict(encoder=stack(12), decoder=stack(2))

    model = abstract(make)
    assert adapted_paths(lj.lora("q", rank=1, layers=-1), model) == {"encoder/11/q", "decoder/1/q"}
    assert adapted_paths(lj.lora("q", rank=1, layers=10), model) == {"encoder/10/q"}
    for number in (12, -13):
        says = rf"no layer {number}; (decoder has 0 to 1, encoder has 0 to 11|encoder.*decoder)"
        with pytest.raises(ValueError, match=says):
            lj.lora("q", rank=1, layers=[0, number]).insert(model, KEY)


def test_models_without_numbers():
    with pytest.raises(
        ValueError, match=r"layers=\[0\]: no path of a target has the number.*plain"
    ):
        lj.lora("plain", rank=2, layers=0).insert(abstract(mixed), KEY)


def test_a_stack_in_one_module_has_no_numbers():
    @nnx.vmap
    def block(key):
        return nnx.Dict(q=nnx.Linear(4, 4, rngs=nnx.Rngs(key)))

    model = nnx.eval_shape(lambda: nnx.Dict(block=block(jax.random.split(KEY, 5))))
    assert adapted_paths(lj.lora("q", rank=2), model) == {"block/q"}
    with pytest.raises(
        ValueError, match=r"layers=\[1\] cannot .* block/q: .*stack of 5 layers.*nnx.List"
    ):
        lj.lora("q", rank=2, layers=1).insert(model, KEY)


# --- Ranks that are too large ---------------------------------------------------------------------


def test_a_rank_too_large_names_the_layer_its_limit_and_the_ways_out():
    says = (
        r"rank 6 .* model/layers/0/self_attn/k_proj: its smaller side is 4; use a rank from 1 to 4, or "
        r"too_large='cap' .*'skip', or exclude='model/layers/0/self_attn/k_proj'"
    )
    with pytest.raises(ValueError, match=says):
        lj.lora(["q_proj", "k_proj"], rank=6).insert(abstract(), KEY)
    with pytest.raises(ValueError, match=says):
        lj.lora("all-linear", rank=6, too_large="error").insert(abstract(), KEY)


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_capped_layers_have_the_rank_they_allow_and_the_scale_of_the_others(scaling):
    method = lj.lora(["q_proj", "k_proj"], rank=6, alpha=9, scaling=scaling, too_large="cap")
    adapted = inserted(method, abstract())
    attention = adapted.model["layers"][0].self_attn
    wide, narrow = attention["q_proj"].lora, attention["k_proj"].lora
    assert wide.a.shape == (WIDTH, 6) and narrow.a.shape == (WIDTH, 4) and narrow.b.shape == (4, 4)
    configured = 9 / 6 if scaling == "alpha/r" else 9 / 6**0.5
    assert wide.scale == configured and narrow.scale == pytest.approx(configured, rel=1e-12)
    summary = method.summary(adapted)
    assert summary.counts()["lora"] == LAYERS * (2 * WIDTH * 6 + (WIDTH + 4) * 4)
    assert sum(row.parameters for row in summary.layers) == summary.counts()["lora"]
    rows = {row.path: row for row in summary.layers}
    row = rows["model/layers/0/self_attn/k_proj"]
    alpha = 6 if scaling == "alpha/r" else 7.34847
    assert row.rank == 4 and row.how == (
        f"rank 4, alpha {alpha:g}, scale {configured:.5g} ({scaling}), dropout 0 (capped from rank 6)"
    )
    assert rows["model/layers/0/self_attn/q_proj"].rank == 6
    assert "capped" not in rows["model/layers/0/self_attn/q_proj"].how


def test_skipped_layers_are_in_the_summary():
    method = lj.lora(["q_proj", "k_proj"], rank=6, too_large="skip")
    assert adapted_paths(method) == paths("q_proj")
    assert reasons(method, abstract()) == dict.fromkeys(
        paths("k_proj"), "rank 6 is larger than its smaller side, 4"
    )
    with pytest.raises(
        ValueError, match=r"no layer is left.*\n  model/layers/0/self_attn/k_proj: rank 6"
    ):
        lj.lora("k_proj", rank=6, too_large="skip").insert(abstract(), KEY)


def test_all_linear_skips_unless_told_otherwise():
    expected = paths(*ATTENTION, *FEED_FORWARD)
    assert adapted_paths(lj.lora("all-linear", rank=6)) == expected - paths("k_proj")
    assert adapted_paths(lj.lora("all-linear", rank=6, too_large="cap")) == expected


def test_targets_say_it_for_themselves():
    own = {
        "k_proj": {"too_large": "cap"},
        "q_proj": {},
        "down_proj": {"too_large": "skip", "rank": 9},
    }
    method = lj.lora(own, rank=6)
    assert adapted_paths(method) == paths("q_proj", "k_proj")
    again = methods.from_json(json.loads(json.dumps(method.to_json())))
    assert again == method and adapted_paths(again) == paths("q_proj", "k_proj")


def test_the_limit_of_a_fused_projection_is_that_of_its_smallest_adapted_part():
    def make():
        return nnx.Dict(qkv=nnx.Linear(8, 12, rngs=nnx.Rngs(0)))

    fused = {"fused": ("q", "k", "v"), "fused_sizes": (8, 2, 2), "too_large": "cap"}
    for parts, rank in ((("q",), 6), (("q", "v"), 2)):
        adapted = inserted(lj.lora({"qkv": {**fused, "parts": parts}}, rank=6), abstract(make))
        assert {pair.rank for pair in layers.factor_pairs(adapted).values()} == {rank}


def test_other_kinds_of_layers_have_their_own_limits():
    """A depthwise convolution has matrices of one column; a table those of its rows."""

    def make():
        rngs = nnx.Rngs(0)
        depthwise = nnx.Conv(4, 4, (3,), feature_group_count=4, rngs=rngs)
        return nnx.Dict(depthwise=depthwise, table=nnx.Embed(3, 8, rngs=rngs))

    method = lj.lora(["depthwise", "table"], rank=6, too_large="cap", magnitude=True, dropout=0.1)
    rows = {row.path: row for row in method.summary(inserted(method, abstract(make))).layers}
    assert {path: row.rank for path, row in rows.items()} == {"depthwise": 1, "table": 3}
    assert "dropout 0.1, magnitude (capped from rank 6)" in rows["depthwise"].how
    assert "dropout 0," in rows["table"].how  # row numbers have none


# --- Targets that never apply ---------------------------------------------------------------------


def test_a_target_whose_layers_earlier_ones_take_is_an_error():
    targets = {r".*/(q|v)_proj": {"rank": 1}, "v_proj": {"rank": 3}}
    says = (
        r"the target rule 'v_proj' never applies: the target rule '\.\*/\(q\|v\)_proj' before it takes "
        r"all that it matches \(model/layers/0/self_attn/v_proj, .*\)\. .*put the narrower one first"
    )
    with pytest.raises(ValueError, match=says):
        lj.lora(targets).insert(abstract(), KEY)
    narrow_first = dict(reversed(targets.items()))
    adapted = inserted(lj.lora(narrow_first), abstract())
    assert {pair.rank for pair in layers.factor_pairs(adapted).values()} == {1, 3}


def test_two_earlier_targets_are_named():
    targets = {"q_proj": {"rank": 1}, "v_proj": {"rank": 2}, r".*/(q|v)_proj": {"rank": 3}}
    with pytest.raises(
        ValueError, match="the target rule 'q_proj', the target rule 'v_proj' before it"
    ):
        lj.lora(targets).insert(abstract(), KEY)


def test_the_same_settings_twice_are_harmless():
    expected = paths("q_proj", "v_proj")
    assert adapted_paths(lj.lora([r".*/(q|v)_proj", "q_proj"], rank=2)) == expected


# --- Arguments ------------------------------------------------------------------------------------


def test_stored_arguments_of_before_are_the_same_bytes():
    method = lj.lora(r".*/(q|v)_proj", rank=4, alpha=8, head="head/.*")
    assert json.dumps(method.to_json()) == (
        '[{"name": "lora", "arguments": {"targets": {".*/(q|v)_proj": {"rank": 4, "alpha": 8, "scaling": '
        '"alpha/r", "init": "kaiming", "std": 0.02, "dropout": 0.0, "parts": [], "fused": [], '
        '"fused_sizes": []}}, "bias": "none", "head": "head/.*"}}]'
    )


def test_new_arguments_are_stored_where_they_are_given():
    method = lj.lora("all-linear", exclude=nnx.Einsum, layers=[0, -1], too_large="cap")
    [(_, arguments)] = method.spec
    assert arguments["exclude"] == ["type:Einsum"] and arguments["layers"] == [0, -1]
    assert arguments["targets"]["all-linear"]["too_large"] == "cap"
    for too_large in ("error", "skip", "cap"):
        method = lj.lora(["all-linear", "x"], too_large=too_large)
        again = methods.from_json(json.loads(json.dumps(method.to_json())))
        assert again == method and again.insertions == method.insertions


def test_configs_name_it_all_by_text():
    arguments = {
        "name": "lora", "targets": ["type:Linear"], "exclude": ["lm_head"], "layers": [0, -1],
        "too_large": "cap", "rank": 6,
    }  # fmt: skip
    method = methods.create(**arguments)
    assert adapted_paths(method) == paths(*ATTENTION, *FEED_FORWARD, layers=[0, 2])


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"targets": 3}, "target must be a path.*'all-linear', or a class.*got 3"),
        ({"targets": [None]}, "target must be .*got None"),
        ({"targets": [int]}, "target must be .*got <class 'int'>"),
        ({"targets": {3: {}}}, "target must be .*got 3"),
        ({"targets": {"q": 4}}, "target 'q' needs a mapping of arguments, got 4"),
        ({"exclude": 3}, "exclude must be a path.*got 3"),
        ({"exclude": [3]}, "exclude must be a path.*got 3"),
        ({"exclude": {"q": {}}}, "exclude must be a path.*got {'q': {}}"),
        ({"layers": True}, "layers must be the number.*got True"),
        ({"layers": "0"}, "layers must be the number.*got '0'"),
        ({"layers": 1.0}, "layers must be the number.*got 1.0"),
        ({"layers": [0, False]}, r"layers must be the number.*got \[0, False\]"),
        ({"layers": []}, r"layers must be the number.*got \[\]"),
        ({"too_large": "clip"}, "too_large must be 'error', 'cap' or 'skip', got 'clip'"),
        ({"too_large": True}, "too_large must be 'error', 'cap' or 'skip', got True"),
        ({"targets": {"q": {"too_large": None}}}, "too_large must be .* got None"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        lj.lora(**{"targets": "q_proj", **arguments})


def test_all_linear_lists_modules_whose_class_it_does_not_know():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones((8, 8)))
            self.known = nnx.Linear(8, 8, rngs=rngs)
            self.norm = nnx.LayerNorm(8, rngs=rngs)

    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.own = Own(rngs)

    method = lj.lora("all-linear", rank=2)
    summary = method.summary(method.insert(Outer(nnx.Rngs(0)), jax.random.key(0)))
    assert [layer.path for layer in summary.layers] == ["own/known"]
    assert [(s.path, s.reason) for s in summary.skipped] == [
        ("own", "Own with w has no LoRA layer, see docs/layers.md, or `axes` in docs/any_model.md")
    ]
