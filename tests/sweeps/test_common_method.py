"""The common method of a program: the largest ranks, no numbers of its own, nothing else changed."""

import itertools

import jax
import pytest
from flax import nnx

import lora_jax
from lora_jax import methods, partition
from lora_jax.low_rank import layers
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.sweeps.common_method import NUMBERS, common_method, structure_of

QKV = {"fused": ("q", "k", "v"), "parts": ("q", "v")}
# Several methods of one structure each; their ranks by target are below.
FAMILIES = {
    "one target": [
        lora_jax.lora(".*/qkv", rank=2, alpha=8.0),
        lora_jax.lora(".*/qkv", rank=5, scaling="alpha/sqrt(r)", dropout=0.1),
        lora_jax.lora(".*/qkv", rank=1, init="gaussian", std=0.5, alpha=1.0),
    ],
    "ranks of their own": [
        lora_jax.lora({".*/qkv": {"rank": 4, **QKV}, ".*/output": {}}, rank=1, alpha=3.0),
        lora_jax.lora({".*/qkv": {"rank": 2, **QKV}, ".*/output": {"rank": 6, "dropout": 0.2}}),
    ],
    "bias and head": [
        lora_jax.lora([".*/qkv", ".*/up"], rank=rank, bias="lora_only", head="norm/.*")
        for rank in (3, 7)
    ],
    "with a prefix": [
        lora_jax.lora(".*/qkv", rank=rank) + lora_jax.prefix_layer(2, 1) for rank in (4, 1, 3)
    ],
    "prefix first": [
        lora_jax.prefix_embed(2) + lora_jax.lora(".*/qkv", rank=rank) for rank in (2, 9)
    ],
    "two LoRAs": [
        lora_jax.lora(".*/qkv", rank=one) + lora_jax.lora(".*/up", rank=two, alpha=5.0)
        for one, two in ((2, 6), (3, 1))
    ],
    "no LoRA": [lora_jax.adapter_h(4), lora_jax.adapter_h(4)],
}
RANKS = {
    "one target": [5],
    "ranks of their own": [4, 6],
    "bias and head": [7, 7],
    "with a prefix": [4],
    "prefix first": [9],
    "two LoRAs": [3, 6],
    "no LoRA": [],
}


def targets(method):
    """Every LoRA target's settings, in order."""
    return [
        target
        for name, arguments in method.spec
        if name == "lora"
        for target in arguments["targets"].values()
    ]


def without_numbers(method):
    """The description with the numbers of every target taken out, worked out another way."""
    if isinstance(method, dict):
        lora = "fused_sizes" in method
        return {k: without_numbers(v) for k, v in method.items() if not (lora and k in NUMBERS)}
    if isinstance(method, list | tuple):
        return [without_numbers(inner) for inner in method]
    return method


@pytest.mark.parametrize("name", FAMILIES)
def test_every_target_has_its_largest_rank_and_scale_1(name):
    members = FAMILIES[name]
    for order in itertools.permutations(members):
        common = common_method(order)
        assert [target["rank"] for target in targets(common)] == RANKS[name]
        for target in targets(common):
            assert target["alpha"] == target["rank"] and target["dropout"] == 0
            assert target["scaling"] == "alpha/r"
        assert without_numbers(common.to_json()) == without_numbers(members[0].to_json())
        assert common.rules == members[0].rules
        assert common.special_tokens == members[0].special_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_one_family_is_one_structure(name):
    members = FAMILIES[name]
    assert len({structure_of(method) for method in [*members, common_method(members)]}) == 1
    # Records of runs on disk name their methods as JSON.
    again = methods.from_json(members[-1].to_json())
    assert structure_of(again) == structure_of(members[0])


def test_families_have_different_structures():
    assert len({structure_of(members[0]) for members in FAMILIES.values()}) == len(FAMILIES)


def test_a_methods_description_stays_as_it_is():
    for members in FAMILIES.values():
        before = [method.to_json() for method in members]
        structure_of(members[0])
        common_method(members)
        assert [method.to_json() for method in members] == before
        assert [target["rank"] for target in targets(members[0])] == [
            target["rank"] for part in before[0] if part["name"] == "lora"
            for target in part["arguments"]["targets"].values()
        ]  # fmt: skip


BASE = lora_jax.lora({".*/qkv": QKV, ".*/up": {}}, rank=2)
OTHERS = {
    "target": lora_jax.lora({".*/qkv": QKV, ".*/down": {}}, rank=2),
    "one target more": lora_jax.lora({".*/qkv": QKV, ".*/up": {}, ".*/down": {}}, rank=2),
    "one target less": lora_jax.lora({".*/qkv": QKV}, rank=2),
    "order of the targets": lora_jax.lora({".*/up": {}, ".*/qkv": QKV}, rank=2),
    "parts": lora_jax.lora({".*/qkv": {**QKV, "parts": ("q",)}, ".*/up": {}}, rank=2),
    "fused": lora_jax.lora({".*/qkv": {**QKV, "fused": ("q", "v", "k")}, ".*/up": {}}, rank=2),
    "fused_sizes": lora_jax.lora({".*/qkv": {**QKV, "fused_sizes": (1, 2, 3)}, ".*/up": {}}),
    "bias": lora_jax.lora({".*/qkv": QKV, ".*/up": {}}, rank=2, bias="all"),
    "head": lora_jax.lora({".*/qkv": QKV, ".*/up": {}}, rank=2, head="norm/.*"),
    "prefix": lora_jax.lora({".*/qkv": QKV, ".*/up": {}}) + lora_jax.prefix_layer(2),
    "method": lora_jax.full(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_number_cannot_be_one_program(name):
    assert structure_of(OTHERS[name]) != structure_of(BASE)
    with pytest.raises(ValueError, match="cannot be one program") as error:
        common_method([BASE, BASE, OTHERS[name]])
    assert str(error.value).count(str(BASE)) == 1 and str(OTHERS[name]) in str(error.value)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (lora_jax.adapter_h(4), lora_jax.adapter_h(8)),
        (lora_jax.adapter_h(4), lora_jax.adapter_p(4)),
        (lora_jax.lora("up") + lora_jax.prefix_layer(2), lora_jax.lora("up") + lora_jax.prefix_layer(3)),
        (lora_jax.full(), lora_jax.full(head="norm/.*")),
        (lora_jax.adapter_h(4, std=0.1), lora_jax.adapter_h(4, std=0.2)),
    ],
)  # fmt: skip
def test_numbers_of_other_methods_are_structure(one, two):
    assert structure_of(one) != structure_of(two)
    with pytest.raises(ValueError, match="cannot be one program"):
        common_method([one, two])


def test_no_methods_is_an_error():
    with pytest.raises(ValueError, match="at least one run"):
        common_method([])


def test_parameters_of_a_model_with_the_common_method_have_room_for_all():
    config = GPT2Config(12, 2, 2, vocab_size=11, n_positions=8)
    model = nnx.eval_shape(lambda: GPT2(config, nnx.Rngs(0)))

    def inserted(method):
        return nnx.eval_shape(lambda: method.insert(model, jax.random.key(0)))

    members = FAMILIES["ranks of their own"]
    common = inserted(common_method(members))
    pairs = layers.factor_pairs(common)
    assert sorted(pairs) == [
        "layers/block/attention/output/lora",
        "layers/block/attention/qkv/lora/q",
        "layers/block/attention/qkv/lora/v",
    ]
    assert all(pair.scale == 1 and pair.dropout == 0 for pair in pairs.values())
    room = partition.parameters(common)
    for method in members:
        params = partition.parameters(inserted(method))
        assert sorted(params) == sorted(room)
        for path, leaf in params.items():
            larger = [new - old for old, new in zip(leaf.shape, room[path].shape, strict=True)]
            assert sum(map(bool, larger)) <= 1 and min(larger) >= 0
        assert method.labels(inserted(method)) == common_method(members).labels(common)
