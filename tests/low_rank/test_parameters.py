"""Parameters that no layer contracts: experts, and projections in a module's own code."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.analysis import factor_pairs
from lora_jax.low_rank import layers
from lora_jax.low_rank.settings import LoRASettings

X = jax.random.normal(jax.random.key(5), (6, 8))
KEY = jax.random.key(0)


class Experts(nnx.Module):
    """A mixture of experts whose weights are bare parameters, read in two methods."""

    def __init__(self, rngs: nnx.Rngs):
        self.w_in = nnx.Param(0.3 * jax.random.normal(rngs.params(), (3, 8, 12)))
        self.w_out = nnx.Param(0.3 * jax.random.normal(rngs.params(), (3, 8, 12)))  # (e, out, in)
        self.router = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(jnp.einsum("bi,eio->beo", x, self.w_in[...]))
        return self.back(hidden, jax.nn.softmax(self.router(x)))

    def back(self, hidden: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.einsum("bei,eoi,be->bo", hidden, self.w_out.get_value(), weights)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([Experts(rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + block(x)
        return x


METHOD = lj.lora(
    {"w_in": {"axes": "bio"}, ".*/w_out": {"axes": "boi", "rank": 4}, ".*router": {"rank": 1}},
    rank=2, alpha=4,
)  # fmt: skip


def randomised(adapted: nnx.Module) -> nnx.Module:
    for number, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))):
        leaf[...] += 0.3 * jax.random.normal(jax.random.key(number), leaf.shape)
    return adapted


def by_hand(model: nnx.Module, adapted: nnx.Module) -> nnx.Module:
    """The pre-trained model with W + scale A B of every parameter, in numpy and float64."""
    params = {k: np.asarray(v, np.float64) for k, v in lj.parameters(adapted).items()}
    result = nnx.clone(model)
    for number, block in enumerate(result.blocks):
        prefix = f"blocks/{number}/"
        for name, equation, scale in (
            ("w_in", "eir,ero->eio", 2), ("w_out", "eir,ero->eoi", 1),
        ):  # fmt: skip
            a, b = (params[f"{prefix}lora/{name}/{side}"] for side in "ab")
            weight = params[prefix + name] + scale * np.einsum(equation, a, b)
            getattr(block, name)[...] = jnp.asarray(weight, jnp.float32)
        a, b = (params[f"{prefix}router/lora/{side}"] for side in "ab")
        weight = params[f"{prefix}router/kernel"] + 4 * a @ b
        block.router.kernel[...] = jnp.asarray(weight, jnp.float32)
    return result


@pytest.fixture(scope="module")
def model():
    return Model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def adapted(model):
    return randomised(METHOD.insert(model, KEY))


def test_step_0_is_the_base_and_the_model_is_left_as_it_is(model):
    before = lj.parameters(model)
    inserted = METHOD.insert(model, KEY)
    np.testing.assert_array_equal(inserted(X), model(X))
    assert type(model.blocks[0]) is Experts
    for path, value in lj.parameters(model).items():
        np.testing.assert_array_equal(value, before[path])
    assert lj.verify(model, METHOD, X).passed


def test_what_is_read_and_merged_is_the_closed_form(model, adapted):
    expected = by_hand(model, adapted)
    np.testing.assert_allclose(adapted(X), expected(X), rtol=2e-5, atol=2e-6)
    merged = lj.merge(adapted)
    assert type(merged.blocks[0]) is Experts
    for path, value in lj.parameters(merged).items():
        np.testing.assert_allclose(value, lj.parameters(expected)[path], rtol=1e-5, atol=1e-6)
    # Read from outside, too.
    np.testing.assert_allclose(
        adapted.blocks[1].w_in[...], merged.blocks[1].w_in[...], rtol=1e-6, atol=1e-7
    )


def test_gradients_are_those_of_the_closed_form(model, adapted):
    def loss(values, module):
        graphdef, _, rest = nnx.split(module, nnx.LoRAParam, ...)
        return jnp.sum(nnx.merge(graphdef, values, rest)(X) ** 2)

    values = nnx.state(adapted, nnx.LoRAParam)
    gradients = dict(nnx.to_flat_state(jax.grad(loss)(values, adapted)))

    def of_merged(weights):
        merged = nnx.clone(lj.merge(adapted))
        merged.blocks[0].w_in[...] = weights
        return jnp.sum(merged(X) ** 2)

    of_weight = jax.grad(of_merged)(lj.merge(adapted).blocks[0].w_in[...])
    pair = adapted.blocks[0].lora.w_in
    expected = 2 * jnp.einsum("eio,ero->eir", of_weight, pair.b[...])
    found = gradients["blocks", 0, "lora", "w_in", "a"][...]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_labels_split_nnx_update_and_folders(model, adapted, tmp_path):
    labels = METHOD.labels(adapted)
    trained = {path for path, group in labels.items() if group == "lora"}
    assert len(trained) == 12 and "blocks/1/lora/w_out/b" in trained
    structure, trainable, frozen = lj.split(adapted, labels)
    np.testing.assert_array_equal(lj.join(structure, trainable, frozen)(X), adapted(X))
    fresh = METHOD.insert(model, KEY)
    nnx.update(fresh, nnx.state(adapted))  # writes what is stored, not what is read
    np.testing.assert_array_equal(fresh(X), adapted(X))
    run = nnx.jit(lambda module, x: module(x))
    np.testing.assert_array_equal(run(fresh, X), run(adapted, X))
    lj.save(tmp_path / "folder", adapted, METHOD, model)
    np.testing.assert_array_equal(lj.load(tmp_path / "folder", model)(X), adapted(X))
    stripped = lj.strip(adapted)
    np.testing.assert_array_equal(stripped(X), model(X))
    assert type(stripped.blocks[0]) is Experts


def test_switching_summary_and_analysis(model, adapted, tmp_path):
    with lj.disabled(adapted):
        np.testing.assert_array_equal(adapted(X), model(X))
    text = str(METHOD.summary(adapted))
    assert "blocks/0/w_out" in text and "axes boi, formed at every read" in text
    pairs = factor_pairs.from_model(adapted)
    lj.save(tmp_path / "folder", adapted, METHOD, model)
    stored = factor_pairs.from_adapter(lj.load_adapter(tmp_path / "folder"))
    assert stored.keys() == pairs.keys() and "blocks/0/w_in" in pairs
    for name, pair in pairs.items():
        assert stored[name].scale == pair.scale
        np.testing.assert_array_equal(stored[name].a, pair.a)


def test_magnitudes_parts_and_stacks(model):
    dora = lj.lora({"w_in": {"axes": "bio"}}, rank=2, magnitude=True)
    assert lj.verify(model, dora, X).passed
    parts = {"axes": "bio", "parts": ("up",), "fused": ("gate", "up")}
    assert lj.verify(model, lj.lora({"w_in": parts}, rank=2), X).passed

    class Stacked(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.blocks = nnx.vmap(Experts, in_axes=0, out_axes=0)(rngs.fork(split=3))

        def __call__(self, x: jax.Array) -> jax.Array:
            step = nnx.scan(lambda x, b: x + b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return step(x, self.blocks)

    assert lj.verify(Stacked(nnx.Rngs(0)), METHOD, X).passed


def test_ranks_are_capped_skipped_and_refused(model):
    targets = {"w_in": {"axes": "bio"}}
    with pytest.raises(
        ValueError, match=r"rank 9 is larger .*blocks/0/w_in: its smaller side is 8"
    ):
        lj.lora(targets, rank=9).insert(model, KEY)
    capped = lj.lora(targets, rank=9, too_large="cap").insert(model, KEY)
    assert {pair.rank for pair in layers.factor_pairs(capped).values()} == {8}
    both = lj.lora({**targets, "router": {}}, rank=3, too_large="skip")
    summary = both.summary(both.insert(model, KEY))
    assert len(summary.layers) == 4 and not summary.skipped


class Odd(nnx.Module):
    """Parameters that cannot be adapted."""

    def __init__(self):
        self.listed = nnx.List([nnx.Param(jnp.ones((2, 2)))])
        self.whole = nnx.Param(jnp.ones((2, 2), jnp.int32))
        self.vector = nnx.Param(jnp.ones((2,)))
        self.first = nnx.Param(jnp.ones((2, 2)))
        self.inner = Shares(self.first)
        self.taken = Taken()


class Shares(nnx.Module):
    def __init__(self, weight: nnx.Param):
        self.second = weight


class Taken(nnx.Module):
    def __init__(self):
        self.lora = nnx.data(jnp.ones(()))
        self.weight = nnx.Param(jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("target", "axes", "says"),
    [
        ("listed/0", "io", "listed/0 is an item of a List"),
        ("whole", "io", "whole has type int32, which cannot hold the merged values"),
        ("vector", "io", r"vector has shape \(2,\), which has not the 2 axes of axes='io'"),
        ("first|inner/second", "io", "are one Variable"),
        ("taken/weight", "io", "taken/weight: its module .*attribute `lora` of its own"),
        ("wight", "io", "matches no path(.|\n)*Nearest paths:\n  .*weight"),
    ],
)
def test_what_cannot_be_adapted_is_named(target, axes, says):
    with pytest.raises(ValueError, match=says):
        lj.lora({target: {"axes": axes}}, rank=1).insert(Odd(), KEY)


def test_bad_axes_and_arguments_are_refused():
    for axes in ("bi", "ix", "o", "io "):
        with pytest.raises(ValueError, match="axes must have one letter for every axis"):
            lj.lora({"w": {"axes": axes}})
    with pytest.raises(ValueError, match="dropout=0.1 needs a layer with inputs"):
        lj.lora({"w": {"axes": "io"}}, dropout=0.1)
    with pytest.raises(ValueError, match="are about layers"):
        lj.lora({"w": {"axes": "io"}}, exclude="w")
    with pytest.raises(
        ValueError, match="exclude and layers are about layers, and 'w' names param"
    ):
        lj.lora({"l": {}, "w": {"axes": "io"}}, layers=[0])
    with pytest.raises(ValueError, match="axes takes paths of parameters, .*got 'all-linear'"):
        lj.lora("all-linear", axes="io")


def test_a_layer_and_its_parameter_are_not_adapted_both():
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    twice = lj.lora("", rank=2) + lj.lora({"kernel": {"axes": "io"}}, rank=2)
    with pytest.raises(ValueError, match="adapted already"):
        twice.insert(layer, KEY)


def test_what_is_read_cannot_be_written(adapted):
    block = nnx.clone(adapted).blocks[0]
    read = block.w_in
    writes = (
        lambda: read.set_value(jnp.zeros((3, 8, 12))),
        lambda: read.__setitem__(..., jnp.zeros((3, 8, 12))),
        lambda: setattr(block, "w_in", read),
    )
    for write in writes:
        with pytest.raises(
            TypeError, match=r"of shape \(3, 8, 12\) with an update cannot be written"
        ):
            write()
    assert isinstance(read, nnx.Param)
    np.testing.assert_array_equal((2 * read).T, (2 * read[...]).T)
    block.w_in = nnx.Param(jnp.zeros((3, 8, 12)))  # what is stored; read with the update
    assert np.any(block.w_in[...])


class NoPytree(nnx.Module, pytree=False):
    def __init__(self, rngs: nnx.Rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (8, 8)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.w[...]


class Holds(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner = NoPytree(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)


def test_classes_that_are_no_pytrees_keep_their_parameters():
    method = lj.lora({"w": {"axes": "io"}}, rank=2)
    assert lj.verify(Holds(nnx.Rngs(0)), method, X).passed
    adapted = method.insert(Holds(nnx.Rngs(0)), KEY)
    assert "inner/w" in lj.parameters(adapted)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        weight = jax.random.normal(jax.random.key(1), (8, 8), jnp.float64)
        layer = nnx.Linear(8, 8, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        layer.kernel[...] = weight
        for method in (lj.lora("", rank=2), lj.lora({"kernel": {"axes": "io"}}, rank=2)):
            merged = lj.merge(method.insert(layer, KEY))
            np.testing.assert_array_equal(merged.kernel[...], weight)


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_alphas_of_capped_ranks_are_the_nearest_numbers(scaling):
    """5 of rank 9 at rank 9 is 5, and not 5.000000000000001, which a config of PEFT would show."""
    for alpha, rank, smaller in itertools.product((1, 5, 7, 10, 16), (3, 5, 9, 12, 49), (1, 3, 4)):
        settings = LoRASettings(rank=rank, alpha=float(alpha), scaling=scaling)
        capped = settings.capped(smaller)
        if scaling == "alpha/r":
            assert capped.alpha == float(Fraction(alpha * smaller, rank))
            assert settings.plain_alpha == alpha
        np.testing.assert_allclose(capped.scale, settings.scale, rtol=1e-15)
        np.testing.assert_allclose(settings.plain_alpha / rank, settings.scale, rtol=1e-15)
