"""Checks of labels: they follow what a method inserted, not names, and rules that cannot apply are errors."""

import jax
import numpy as np
import pytest
from flax import nnx
from hf_like import CausalLM, paths

import lora_jax as lj
from lora_jax import partition
from lora_jax.models.gpt2 import GPT2, GPT2Config

KEY = jax.random.key(0)


class Named(nnx.Module):
    """Modules of the user's own that have the names under which methods insert."""

    def __init__(self, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.lora = nnx.Dict(
            special=nnx.Embed(5, 4, rngs=rngs), a=nnx.Linear(4, 4, rngs=rngs), adapter=nnx.List([])
        )
        self.adapter = nnx.Dict(down=nnx.Linear(4, 4, rngs=rngs), norm=nnx.LayerNorm(4, rngs=rngs))
        self.special = nnx.Dict(embedding=nnx.Linear(4, 4, rngs=rngs))
        self.query = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, ids):
        x = self.lora["a"](self.lora["special"](ids))
        return self.query(self.special["embedding"](self.adapter["norm"](self.adapter["down"](x))))


BIASES = {
    "lora/a/bias",
    "adapter/down/bias",
    "adapter/norm/bias",
    "special/embedding/bias",
    "query/bias",
}


def labelled(method, make=Named):
    """Leaves by group, of an abstract model."""
    model = make if isinstance(make, nnx.Module) else nnx.eval_shape(make)
    adapted = nnx.eval_shape(lambda m: method.insert(m, KEY), model)
    groups = {}
    for path, group in method.labels(adapted).items():
        groups.setdefault(group, set()).add(path)
    frozen = groups.pop(lj.FROZEN, set())
    assert frozen | set().union(*groups.values()) == set(partition.parameters(adapted))
    return groups


@pytest.mark.parametrize(
    "method, expected",
    [
        (lj.lora("query", rank=2), {"lora": {"query/lora/a", "query/lora/b"}}),
        (lj.lora("lora/a", rank=2), {"lora": {"lora/a/lora/a", "lora/a/lora/b"}}),
        (
            lj.lora("query", rank=2, bias="all"),
            {"lora": {"query/lora/a", "query/lora/b"}, "bias": BIASES},
        ),
        (
            lj.lora("lora/a", rank=2, bias="lora_only"),
            {"lora": {"lora/a/lora/a", "lora/a/lora/b"}, "bias": {"lora/a/bias"}},
        ),
        (lj.bitfit(), {"bias": BIASES}),
        (
            lj.prefix_embed(2, tokens="lora/special") + lj.lora("lora/a", rank=1),
            {"prefix": {"lora/special/special/embedding"}, "lora": {"lora/a/lora/a", "lora/a/lora/b"}},
        ),
    ],
)  # fmt: skip
def test_modules_of_the_users_with_the_names_of_inserted_ones(method, expected):
    assert labelled(method) == expected


def test_only_the_update_moves_where_a_module_is_called_lora():
    model = Named()
    method = lj.lora("query", rank=2)
    structure, trainable, frozen = lj.split(
        adapted := method.insert(model, KEY), method.labels(adapted)
    )
    assert set(trainable) == {"query/lora/a", "query/lora/b"}
    trainable = {path: leaf + 0.3 for path, leaf in trainable.items()}
    merged = lj.merge(lj.join(structure, trainable, frozen))
    before, after = lj.parameters(model), lj.parameters(merged)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {"query/kernel"} and before.keys() == after.keys()
    assert lj.parameters(lj.strip(adapted)).keys() == before.keys()


def test_a_layer_with_an_attribute_lora_is_refused():
    model = Named()
    model.query.lora = nnx.Param(jax.numpy.ones(2))
    with pytest.raises(ValueError, match="query has an attribute `lora` of its own"):
        lj.lora("query", rank=2).insert(model, KEY)


def test_lora_only_is_about_the_layers_that_were_adapted():
    """Whatever chose them: excluded, skipped and other layers' biases stay frozen."""
    method = lj.lora(
        "all-linear", rank=6, exclude="o_proj", layers=[0, 1], bias="lora_only"
    ) + lj.lora("q_proj", rank=2, layers=2)  # fmt: skip
    groups = labelled(method, CausalLM)
    assert groups["bias"] == {f"{path}/bias" for path in paths("q_proj", "v_proj", layers=[0, 1])}


def test_biases_of_a_layer_that_is_the_whole_model():
    method = lj.lora(nnx.Linear, rank=2, bias="lora_only")
    model = method.insert(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), KEY)
    assert {p for p, group in method.labels(model).items() if group == "bias"} == {"bias"}


# --- Rules ----------------------------------------------------------------------------------------

PARAMS = dict.fromkeys(["x/kernel", "x/bias", "y/bias", "x/lora/a", "lora/bias", "lora/lora/a"])
INSERTED = ["x/lora", "lora/lora"]


@pytest.mark.parametrize(
    "inserted, expected",
    [
        (None, set(PARAMS)),
        ("", {"x/kernel", "x/bias", "y/bias", "lora/bias"}),
        ("lora", {"x/lora/a", "lora/lora/a"}),
    ],
)
def test_rules_for_what_was_inserted_and_what_was_not(inserted, expected):
    labels = partition.labels(PARAMS, [lj.Rule(".*", "g", inserted)], INSERTED)
    assert {path for path, group in labels.items() if group == "g"} == expected
    assert labels.keys() == PARAMS.keys()


def test_a_rule_for_what_nothing_inserted():
    with pytest.raises(
        ValueError, match="'g' rule .* matches no path: .*inserts as `adapter`.* insert the"
    ):
        partition.labels(PARAMS, [lj.Rule(".*", "g", "adapter")], INSERTED)


@pytest.mark.parametrize(
    "rules, says",
    [
        (
            [("x/.*", "one"), ("x/kernel", "two")],
            r"the 'two' rule 'x/kernel' never applies: the 'one' rule 'x/\.\*' before it takes all that it "
            r"matches \(x/kernel\)\. .*put the narrower one first",
        ),
        (
            [("x/kernel", "one"), (".*/bias", "two"), ("x/(kernel|bias)", "three")],
            "'three' rule .* never applies: the 'one' rule 'x/kernel', the 'two' rule",
        ),
    ],
)
def test_a_rule_whose_leaves_earlier_ones_take_is_an_error(rules, says):
    rules = [lj.Rule(*rule) for rule in rules]
    with pytest.raises(ValueError, match=says):
        partition.labels(PARAMS, rules)


def test_the_narrower_rule_first_is_fine():
    rules = [lj.Rule("x/kernel", "two"), lj.Rule("x/.*", "one")]
    assert partition.labels(PARAMS, rules)["x/kernel"] == "two"


def test_rules_of_the_same_group_are_harmless():
    rules = [lj.Rule("x/.*", "one"), lj.Rule(".*/kernel", "one")]
    assert partition.labels(PARAMS, rules)["x/kernel"] == "one"


def test_full_fine_tuning_before_lora_leaves_it_nothing():
    with pytest.raises(
        ValueError, match=r"the 'lora' rule '\.\*' never applies: the 'base' rule '\.\*'"
    ):
        labelled(lj.full() + lj.lora("query", rank=2))
    assert set(labelled(lj.lora("query", rank=2) + lj.full())) == {"lora", "base"}


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(
        ValueError, match=r"the 'g' rule '\(x' is no regular expression: missing \)"
    ):
        partition.labels(PARAMS, [lj.Rule("(x", "g")])


QKV = {".*/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}
COMBINED = {
    "lora": lj.lora(QKV, rank=2, head="norm/.*"),
    "lora and biases": lj.lora(QKV, rank=2, head="norm/.*", bias="all"),
    "lora and its biases": lj.lora(QKV, rank=2, head="norm/.*", bias="lora_only"),
    "dora": lj.lora({".*/up": {}}, rank=2, head="norm/.*", magnitude=True),
    "bitfit": lj.bitfit(head="norm/.*"),
    "adapter_h": lj.adapter_h(2, head="norm/.*"),
    "adapter_d": lj.adapter_d(2, 1, head="norm/.*"),
    "prefix_embed": lj.prefix_embed(2, head="norm/.*"),
    "prefix_layer": lj.prefix_layer(2, 1, head="norm/.*"),
    "top_layers": lj.top_layers(1, head="norm/.*"),
    "head_only": lj.head_only("norm/.*"),
}
NOT_TOGETHER = [
    {"lora", "lora and biases"}, {"lora", "lora and its biases"}, {"adapter_h", "adapter_d"},
    {"lora and biases", "lora and its biases"}, {"prefix_embed", "prefix_layer"},
]  # fmt: skip


@pytest.mark.parametrize("first", COMBINED)
def test_methods_with_one_head_combine_in_either_order(first):
    """Every group of both has leaves, and they are the same; layers that both change are refused."""
    config = GPT2Config(8, 3, 2, vocab_size=9, n_positions=8)
    model = nnx.eval_shape(lambda: GPT2(config, nnx.Rngs(0)))
    one = COMBINED[first]
    for second, two in COMBINED.items():
        if first == second or {first, second} in NOT_TOGETHER:
            continue
        groups, other = labelled(one + two, model), labelled(two + one, model)
        biases = {"bitfit", "lora and biases", "lora and its biases"}
        if "top_layers" in (first, second) and biases & {first, second}:
            # Who is first has the biases of the last layers.
            assert groups.keys() == other.keys()
        else:
            assert groups == other, (first, second)
        assert groups["head"] == {"norm/scale", "norm/bias"}
