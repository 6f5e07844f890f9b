"""Combined adapters against PEFT's `add_weighted_adapter` on the same factors, and against exact sums."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import nnx

import lora_jax
from lora_jax import combination
from lora_jax.adapters import Adapter, attach
from lora_jax.combination.combining import OF_FACTORS, OF_UPDATES, WAYS
from lora_jax.errors import InputError
from lora_jax.fingerprints import base_parameters, fingerprint

ROWS, IN, OUT = 11, 8, 6
SIZES = {"first": (IN, OUT), "second": (IN, IN)}
RANKS, ALPHAS, WEIGHTS = (3, 3), (6.0, 2.0), (0.7, -0.4)


class Model(nnx.Module):
    def __init__(self, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.table = nnx.Embed(ROWS, IN, rngs=rngs)
        self.first = nnx.Linear(*SIZES["first"], rngs=rngs)
        self.second = nnx.Linear(*SIZES["second"], rngs=rngs)
        self.head = nnx.Linear(IN, 2, rngs=rngs)

    def __call__(self, ids):
        x = self.table(ids)
        return self.first(x), self.head(self.second(x))


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(ROWS, IN)
        self.first = torch.nn.Linear(*SIZES["first"])
        self.second = torch.nn.Linear(*SIZES["second"])

    def forward(self, ids):
        x = self.table(ids)
        return self.first(x), self.second(x)


MODEL = Model()
BASE = fingerprint(base_parameters(MODEL, "head/.*"))


def adapter(seed, rank, alpha, names=("table", "first", "second"), head=None):
    """An adapter with random factors."""
    method = lora_jax.lora(list(names), rank=rank, alpha=alpha, head=head)
    adapted = method.insert(MODEL, jax.random.key(0))
    labels = method.labels(adapted)
    _, trainable, _ = lora_jax.split(adapted, labels)
    random = np.random.default_rng(seed)
    values = {
        path: random.standard_normal(value.shape).astype(np.float32)
        for path, value in sorted(trainable.items())
    }
    return Adapter(method, {path: labels[path] for path in values}, values, BASE, {"model": "m"})


def deltas(given):
    """The effective updates by layer, (inputs, outputs)."""
    found = lora_jax.analysis.factor_pairs.from_adapter(given)
    return {name: pair.scale * np.matmul(pair.a, pair.b)[0] for name, pair in found.items()}


def pefts(adapters, **arguments):
    """The updates of PEFT's combination, (inputs, outputs) by layer."""
    model = Torch()
    for number, given in enumerate(adapters):
        layers = sorted({path.split("/")[0] for path in given.values})
        rank, alpha = RANKS[number], ALPHAS[number]
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
        if number == 0:
            model = peft.get_peft_model(model, config, adapter_name="0")
        else:
            model.add_adapter(str(number), config)
        for layer in layers:
            module, name = getattr(model.base_model.model, layer), str(number)
            a, b = (torch.tensor(given.values[f"{layer}/lora/{side}"].T.copy()) for side in "ab")
            if layer == "table":
                module.lora_embedding_A[name].data, module.lora_embedding_B[name].data = a, b
            else:
                module.lora_A[name].weight.data, module.lora_B[name].weight.data = a, b
    names = [str(number) for number in range(len(adapters))]
    model.base_model.add_weighted_adapter(names, list(WEIGHTS), "new", **arguments)
    result = {}
    for layer in ("table", "first", "second"):
        module = getattr(model.base_model.model, layer)
        if "new" in getattr(module, "scaling", {}):
            delta = module.get_delta_weight("new").detach().numpy()
            result[layer] = delta if layer == "table" else delta.T
    return result


@pytest.fixture(scope="module")
def two():
    """Two adapters, of which the second leaves a layer out."""
    return [adapter(1, RANKS[0], ALPHAS[0]), adapter(2, RANKS[1], ALPHAS[1], ("table", "second"))]


def combined(adapters, **settings):
    names = dict(zip("xy", adapters, strict=True))
    return combination.combine(names, dict(zip("xy", WEIGHTS, strict=True)), **settings)


DRAWN = [way for way in WAYS if "dare" in way]


CASES = [
    (way, signs)
    for way in WAYS
    for signs in (("total", "frequency") if "ties" in way else ("total",))
    if way not in DRAWN
]


@pytest.mark.parametrize(("way", "signs"), CASES)
def test_the_updates_are_those_of_peft(two, way, signs):
    settings = {} if way in ("cat", "linear", "svd") else {"density": 0.6}
    rank = {"rank": 2} if way in OF_UPDATES else {}
    ours = deltas(combined(two, by=way, signs=signs, **settings, **rank))
    theirs = pefts(
        two, combination_type=way, majority_sign_method=signs, svd_rank=rank.get("rank"), **settings
    )
    assert ours.keys() == theirs.keys() == {"table", "first", "second"}
    for layer, delta in theirs.items():
        np.testing.assert_allclose(ours[layer], delta, atol=2e-6 * np.abs(delta).max(), rtol=1e-4)


@pytest.mark.parametrize("way", DRAWN)
def test_dare_is_pefts_where_the_draws_are_the_same(way, monkeypatch):
    adapters = [adapter(n, RANKS[n], ALPHAS[n], ("first", "second")) for n in (0, 1)]
    random = np.random.default_rng(5)

    def bernoulli(shares):
        drawn = shares.numpy() > random.random(tuple(shares.shape)[::-1]).T  # ours are transposed
        return torch.tensor(drawn.astype(np.float32))

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    theirs = pefts(adapters, combination_type=way, density=0.5)
    monkeypatch.undo()
    ours = deltas(combined(adapters, by=way, density=0.5, seed=5))
    for layer, delta in theirs.items():
        np.testing.assert_allclose(ours[layer], delta, atol=2e-6 * np.abs(delta).max(), rtol=1e-4)


def test_dare_keeps_the_expected_sum():
    adapters = [adapter(n, RANKS[n], ALPHAS[n], ("second",)) for n in (0, 1)]
    exact = deltas(combined(adapters, by="cat"))["second"]
    drawn = [
        deltas(combined(adapters, by="dare_linear_svd", density=0.5, seed=seed, rank=IN))["second"]
        for seed in range(400)
    ]
    # 400 draws of values whose deviation is that of the values themselves: 5% of it, times 4.
    parts = [deltas(given)["second"] for given in adapters]
    spread = np.sqrt(sum((w * part) ** 2 for w, part in zip(WEIGHTS, parts, strict=True)))
    assert np.all(np.abs(np.mean(drawn, axis=0) - exact) < 0.2 * spread + 1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -2.0)])
def test_cat_is_the_exact_sum_and_distances_say_so(weights):
    adapters = {"x": adapter(1, 2, 8.0), "y": adapter(2, 4, 4.0)}
    by_name = dict(zip(adapters, weights, strict=True))
    whole = combination.combine(adapters, by_name, by="cat")
    parts = [deltas(given) for given in adapters.values()]
    for layer, delta in deltas(whole).items():
        exact = sum(w * part[layer] for w, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(delta, exact, atol=1e-5)
    assert max(d.max() for d in combination.distances(adapters, by_name, whole).values()) < 1e-6
    near = combination.combine(adapters, by_name, by="svd", rank=3)
    found = combination.distances(adapters, by_name, near)
    for layer, delta in deltas(whole).items():
        values = np.linalg.svd(delta, compute_uv=False)
        expected = np.linalg.norm(values[3:]) / np.linalg.norm(values)
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4)


def test_the_result_is_an_adapter_of_the_base(tmp_path):
    adapters = {"x": adapter(1, 2, 8.0, head="head/.*"), "y": adapter(2, 4, 4.0)}
    with pytest.raises(InputError, match=r"'x' trains more than factors \(head/bias.*rest=NAME"):
        combination.combine(adapters)
    whole = combination.combine(adapters, rest="x")
    folder = lora_jax.save_adapter(
        tmp_path / "sum", whole.values, whole.groups, whole.method, whole.base, whole.notes
    )
    loaded = lora_jax.load_adapter(folder)
    model = attach(Model(), loaded, head="head/.*")
    ids = jnp.arange(ROWS)
    first, _ = model(ids)
    with_x, _ = attach(Model(), adapters["x"], head="head/.*")(ids)
    assert not np.allclose(first, with_x, atol=1e-3)
    table = np.asarray(MODEL.table.embedding[...]) + deltas(whole)["table"]
    kernel = np.asarray(MODEL.first.kernel[...]) + deltas(whole)["first"]
    np.testing.assert_allclose(first, table @ kernel + np.asarray(MODEL.first.bias[...]), atol=1e-3)
    np.testing.assert_array_equal(model.head.kernel[...], adapters["x"].values["head/kernel"])
    assert loaded.notes["model"] == "m" and loaded.notes["combination"]["by"] == "cat"


def test_biases_of_adapted_layers_need_the_same_layers():
    """Else the result would have to train biases that no adapter has."""
    method = lora_jax.lora("second", rank=2, bias="lora_only")
    model = method.insert(MODEL, jax.random.key(0))
    labels = method.labels(model)
    values = {path: np.asarray(v) for path, v in lora_jax.split(model, labels)[1].items()}
    own = Adapter(method, {path: labels[path] for path in values}, values, BASE, {})
    with pytest.raises(InputError, match=r"bias='lora_only'.*first, table"):
        combination.combine({"own": own, "other": adapter(1, 2, 8.0)}, rest="own")
    same = combination.combine({"own": own, "other": adapter(1, 2, 8.0, ("second",))}, rest="own")
    fitted = attach(Model(), same, head="head/.*")
    np.testing.assert_array_equal(fitted.second.bias[...], values["second/bias"])


def test_task_arithmetic_takes_a_task_out():
    one, other = adapter(1, 2, 8.0), adapter(2, 4, 4.0)
    both = combination.combine({"one": one, "other": other})
    back = combination.combine({"both": both, "other": other}, {"other": -1.0}, by="svd", rank=2)
    for layer, delta in deltas(back).items():
        np.testing.assert_allclose(delta, deltas(one)[layer], atol=1e-4)


STACKED = {
    ".*/qkv": {"rank": 3, "parts": ("q", "v"), "fused": ("q", "k", "v")},
    ".*/output": {"rank": 2},
}


def _linear(sizes, rngs):
    return nnx.Linear(*sizes, rngs=rngs)


class Stacked(nnx.Module):
    """Layers as lora_jax.models has them: a leading axis."""

    def __init__(self, depth=3):
        made = {}
        for name, sizes in (("qkv", (8, 24)), ("output", (8, 8))):
            make = nnx.vmap(functools.partial(_linear, sizes))
            made[name] = nnx.split_rngs(splits=depth)(make)(nnx.Rngs(1))
        self.layers = nnx.Dict(block=nnx.Dict(made))


def stacked(seed, targets):
    model = Stacked()
    method = lora_jax.lora(targets, alpha=6)
    adapted = method.insert(model, jax.random.key(0))
    labels = method.labels(adapted)
    _, trainable, _ = lora_jax.split(adapted, labels)
    random = np.random.default_rng(seed)
    values = {
        p: random.standard_normal(v.shape).astype(np.float32) for p, v in sorted(trainable.items())
    }
    return Adapter(method, labels, values, fingerprint(base_parameters(model, None)), {})


def test_stacks_and_parts_of_fused_layers():
    """Other parts in either adapter: the result has them all, at one rank, and fits the model."""
    other = {".*/qkv": {"rank": 3, "parts": ("k", "v"), "fused": ("q", "k", "v")}}
    adapters = {"x": stacked(1, STACKED), "y": stacked(2, other)}
    whole = combination.combine(adapters)
    model = attach(Stacked(), whole)
    found = lora_jax.analysis.factor_pairs.from_model(model)
    parts = [lora_jax.analysis.factor_pairs.from_adapter(given) for given in adapters.values()]
    assert found.keys() == parts[0].keys() | parts[1].keys()
    for name, pair in found.items():
        exact = sum(p[name].scale * p[name].a @ p[name].b for p in parts if name in p)
        np.testing.assert_allclose(pair.scale * pair.a @ pair.b, exact, atol=1e-4)
    assert {found[f"layers/block/qkv/{part}"].rank for part in "qkv"} == {6}
    pruned = combination.combine(adapters, by="ties_svd", density=0.5, rank=8)
    one = {name: pair.a[1] @ pair.b[1] * pair.scale for name, pair in parts[0].items()}
    # The layer by itself gives the same: shares and votes are of one matrix.
    alone = combination.rules.trimmed(one["layers/block/qkv/q"][None], 0.5)[0]
    both = lora_jax.analysis.factor_pairs.from_adapter(pruned)["layers/block/qkv/q"]
    np.testing.assert_allclose((both.scale * both.a @ both.b)[1], alone, atol=1e-4)


@pytest.mark.parametrize(("energy", "least"), [(0.5, 0.5), (0.99, 0.99)])
def test_reduce_keeps_the_energy_that_is_asked_for(energy, least):
    whole = stacked(3, STACKED)
    reduced = combination.reduce(whole, energy=energy)
    before, after = (lora_jax.analysis.factor_pairs.from_adapter(x) for x in (whole, reduced))
    for name, pair in before.items():
        exact = pair.scale * pair.a @ pair.b
        near = after[name].scale * after[name].a @ after[name].b
        lost = np.linalg.norm(exact - near, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
        assert np.all(1 - lost**2 >= least - 1e-5)
    assert combination.reduce(whole, rank=1).values["layers/block/output/lora/a"].shape == (3, 8, 1)


def test_what_does_not_fit_is_refused(two):
    x, y = two
    dora = dataclasses.replace(adapter(1, 3, 6.0, ("first",)))
    dora.values["first/lora/magnitude"] = np.ones(OUT, np.float32)
    dora.groups["first/lora/magnitude"] = "lora"
    cases = [
        ({"a": x, "b": dora}, {}, r"'b': the update of first is more than a product.*magnitude"),
        ({"a": x, "b": dataclasses.replace(y, base="f" * 64)}, {}, "of different bases"),
        ({n: dataclasses.replace(a, base="") for n, a in (("a", x), ("b", y))}, {}, "not known"),
        ({"a": x, "b": adapter(1, 2, 2.0)}, {"by": "linear"}, r"first has the ranks \[2, 3\]"),
        ({"a": x}, {"by": "mean"}, "by must be .*mean"),
        ({"a": x}, {"by": "ties"}, "'ties' needs density"),
        ({"a": x}, {"density": 0.5}, "'cat' keeps all values"),
        ({"a": x}, {"rank": 2}, "'cat' has its own"),
        ({"a": x}, {"by": "svd", "rank": 2, "energy": 0.5}, "not both"),
        ({"a": x}, {"by": "svd", "energy": 1.5}, "energy"),
        ({"a": x}, {"rest": "b"}, "rest is 'b'; the adapters are a"),
        ({"a": x}, {"weights": {"b": 1.0}}, "weights are given for b; the adapters are a"),
        ({"a": x}, {"weights": {"a": float("nan")}}, "weight of 'a'"),
        ({"a": x}, {"weights": {"a": 0}}, "weight of a is 0"),
        ({}, {}, "at least one adapter"),
    ]
    for adapters, settings, says in cases:
        with pytest.raises(InputError, match=says):
            combination.combine(adapters, **settings)


def test_every_way_is_documented_and_named_once():
    assert len(set(WAYS)) == len(WAYS) == 1 + len(OF_FACTORS) + len(OF_UPDATES)
    assert all(x != y for x, y in itertools.combinations(WAYS, 2))


def test_an_adapter_less_itself_is_nothing():
    """The rounding that is left of terms that cancel is no sum to be far from."""
    a = adapter(1, 2, 8.0)
    both = {"a": a, "again": a}
    result = combination.combine(both, {"again": -1.0})
    found = combination.distances(both, {"again": -1.0}, result)
    assert all((far == 0).all() for far in found.values())
    other = combination.distances(both, {"again": -1.0}, a)
    assert all(np.isinf(far).all() for far in other.values())
