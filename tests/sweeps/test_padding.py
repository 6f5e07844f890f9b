"""Padded factors: the padding stays exactly zero in training, and the rest is the run without it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax
from lora_jax import partition
from lora_jax.sweeps import padding
from lora_jax.sweeps.runs import RunValues, of_run, run_values
from lora_jax.training.optimizer import adamw

STEPS = 6  # 3 updates of 2 micro-batches
ZEROS = nnx.initializers.zeros  # random values are slow to compile; `randomise` sets them


def linear(rngs):
    return nnx.Linear(6, 9, kernel_init=ZEROS, rngs=rngs)


def stack(rngs):
    make = lambda r: nnx.Linear(6, 6, kernel_init=ZEROS, rngs=r)  # noqa: E731
    return nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)


def general(*sizes, **settings):
    return lambda rngs: nnx.LinearGeneral(*sizes, kernel_init=ZEROS, rngs=rngs, **settings)


def einsum(*arguments):
    return lambda rngs: nnx.Einsum(*arguments, kernel_init=ZEROS, rngs=rngs)


def embed(rngs):
    return nnx.Embed(10, 6, embedding_init=ZEROS, rngs=rngs)


def conv(rngs):
    return nnx.Conv(8, 8, (3,), feature_group_count=2, kernel_init=ZEROS, rngs=rngs)


FUSED = {"fused": ("q", "k", "v"), "parts": ("q", "v")}
# name: (constructor, shape of the input, rank and more; room for the rank is twice as much)
CASES = {
    "linear": (linear, (3, 6), {"rank": 3}),
    "linear_fused": (linear, (3, 6), {**FUSED, "fused_sizes": (5, 1, 3), "rank": 1}),
    "stack": (stack, (3, 6), {"rank": 2}),
    "general_two_inputs": (general((2, 4), 6, axis=(-2, -1)), (3, 2, 4), {"rank": 2}),
    "general_batch_axis": (general(4, 5, batch_axis={0: 3}), (3, 6, 4), {"rank": 2}),
    "einsum_heads": (einsum("nta,hab->nthb", (3, 4, 5), (3, 5)), (2, 6, 4), {"rank": 2}),
    "embed": (embed, (3, 4), {"rank": 3}),
    "conv_groups": (conv, (2, 7, 8), {"rank": 2}),
}
ALPHA = 3.0


class Model(nnx.Module):
    """All of them side by side."""

    def __init__(self):
        for name, (make, _, _) in CASES.items():
            setattr(self, name, make(nnx.Rngs(0)))

    def __call__(self, inputs):
        return {name: called(getattr(self, name), x) for name, x in inputs.items()}


def called(layer, x):
    """The layer's output; of a stack, that of its layers in a row."""
    if not layer.stack_shape():
        return layer(x)
    graphdef, state = nnx.split(layer)
    return jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x), None), x, state)[0]


def method(times, alpha):
    return lora_jax.lora(
        {name: {**settings, "rank": times * settings["rank"], "alpha": alpha or times * settings["rank"]}
         for name, (_, _, settings) in CASES.items()}
    )  # fmt: skip


def split(base, method):
    """(structure, trainable, frozen, scales) of an adapted copy."""
    adapted = method.insert(base, jax.random.key(0, impl="rbg"))
    return *partition.split(adapted, method.labels(adapted)), run_values(adapted, 0.1).scales


def trained(structure, trainable, frozen, scales, batches):
    """Parameters and gradients of every step, by AdamW with decay, clip and accumulation."""
    labels = dict.fromkeys(trainable, "lora")
    optimizer = adamw(
        labels, 0.05, weight_decay=0.1, no_decay="", max_grad_norm=0.5, accumulate=2,
    )  # fmt: skip

    def loss(trainable, inputs, targets):
        outputs = partition.join(structure, of_run(trainable, RunValues(0.0, scales, {})), frozen)(
            inputs
        )
        return sum(jnp.mean((outputs[name] - targets[name]) ** 2) for name in outputs)

    def step(carry, batch):
        trainable, state = carry
        gradients = jax.grad(loss)(trainable, *batch)
        updates, state = optimizer.update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        return (trainable, state), (trainable, gradients)

    start = trainable, optimizer.init(trainable)
    (_, state), steps = jax.jit(lambda *args: jax.lax.scan(step, *args))(start, batches)
    return *steps, state


@pytest.fixture(scope="module")
def runs():
    """A run with ranks of its own, and the same one padded to twice the ranks."""
    base = Model()
    random = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(base, nnx.Param)):
        variable[...] = jnp.asarray(random.normal(size=variable.shape), jnp.float32)
    structure, start, frozen, scales = split(base, method(1, ALPHA))
    common = nnx.eval_shape(lambda: method(2, None).insert(base, jax.random.key(0)))
    structure_of_common, room, _ = partition.split(common, method(2, None).labels(common))
    assert set(run_values(common, 0.1).scales.values()) == {1}

    def drawn(name, shape):
        if name == "embed":
            return jnp.asarray(random.integers(0, 10, shape), jnp.int32)
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    inputs = {name: drawn(name, (STEPS, *shape)) for name, (_, shape, _) in CASES.items()}
    one = {name: x[0] for name, x in inputs.items()}
    outputs = jax.eval_shape(lambda x: partition.join(structure, start, frozen)(x), one)
    targets = {name: drawn("", (STEPS, *y.shape)) for name, y in outputs.items()}
    shapes = padding.shapes_of(room)
    padded = padding.padded(start, shapes)
    # A run alone multiplies A by a Python number in the layer, one of many by its own scale.
    alone = trained(structure, start, frozen, dict.fromkeys(scales, 1.0), (inputs, targets))
    together = trained(structure_of_common, padded, frozen, scales, (inputs, targets))
    return types.SimpleNamespace(
        start=start, padded=padded, shapes=shapes, scales=scales, alone=alone, together=together
    )


def outside(array, size):
    """A copy of the array with zeros in the leading part of this size."""
    copy = np.array(array)
    assert copy.size > np.prod(size)
    copy[(..., *map(slice, size))] = 0
    return copy


@pytest.mark.parametrize("name", CASES)
def test_the_padded_run_is_the_run_without_padding(runs, name):
    rank = CASES[name][2]["rank"]
    paths = [path for path in runs.start if path.startswith(f"{name}/lora/")]
    assert len(paths) == (4 if name.endswith("_fused") else 2)
    for path in paths:
        assert runs.scales[path[:-2]] == np.float32(ALPHA / rank)
        size = runs.start[path].shape
        for of_alone, of_together in zip(runs.alone[:2], runs.together[:2], strict=True):
            expected, found = np.asarray(of_alone[path]), np.asarray(of_together[path])
            # float32 sums with more (zero) terms, in another order; Adam's first updates divide
            # gradients by their own size, which magnifies the differences of small ones.
            at_most = 1e-4 * np.abs(expected).max()
            inside = found[(slice(None), *map(slice, size))]
            np.testing.assert_allclose(inside, expected, rtol=2e-4, atol=at_most, err_msg=path)
        moved = np.abs(np.asarray(runs.alone[0][path][-1]) - np.asarray(runs.start[path])).max()
        assert moved > 0.05, path  # it does train: three updates of up to 0.05


def test_padding_and_its_gradients_and_moments_are_exactly_zero(runs):
    for path, leaf in runs.start.items():
        assert not outside(runs.padded[path], leaf.shape).any()
        params, gradients = (np.asarray(found[path]) for found in runs.together[:2])
        assert len(params) == len(gradients) == STEPS and gradients.any(axis=None)
        assert not outside(params, leaf.shape).any(), path
        assert not outside(gradients, leaf.shape).any(), path
    moments = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(runs.together[2]):
        path = next((key.key for key in keys if getattr(key, "key", None) in runs.start), None)
        if path is not None:
            assert leaf.shape == runs.shapes[path]
            assert not outside(leaf, runs.start[path].shape).any(), keys
            moments += 1
    assert moments == 3 * len(runs.start)  # two of Adam, and the mean of the micro-batches


@pytest.mark.parametrize("name", ["linear", "embed"])
def test_only_an_embeddings_a_starts_at_zero_and_padding_is_zero_in_both(runs, name):
    rank = CASES[name][2]["rank"]
    a, b = (np.asarray(runs.padded[f"{name}/lora/{factor}"]) for factor in "ab")
    assert a.shape[1] == b.shape[0] == 2 * rank
    assert (a[:, :rank].any(), b[:rank].any()) == ((False, True), (True, False))[name == "linear"]
    assert not a[:, rank:].any() and not b[rank:].any()


SHAPES = {"a": (3, 4), "b": (2, 4, 5), "one": (), "none": (0, 3)}


def values(seed=0, shapes=SHAPES):
    random = np.random.default_rng(seed)
    return {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize(
    "larger",
    [{}, {"a": (3, 7)}, {"a": (5, 4)}, {"b": (2, 9, 5)}, {"a": (3, 6), "b": (3, 4, 5)},
     {"none": (4, 3)}],
)  # fmt: skip
def test_cut_is_the_inverse_of_padded(larger):
    params = values()
    wanted = {**SHAPES, **larger}
    found = padding.padded(params, wanted)
    assert list(found) == list(params) and padding.shapes_of(found) == wanted
    for path, leaf in found.items():
        expected = np.zeros(wanted[path], np.float32)
        expected[tuple(map(slice, SHAPES[path]))] = params[path]
        np.testing.assert_array_equal(leaf, expected)
    back = padding.cut(found, padding.shapes_of(params))
    assert list(back) == list(params)
    for path, leaf in back.items():
        np.testing.assert_array_equal(leaf, params[path])


def test_cut_takes_host_arrays_as_they_are():
    found = padding.cut({"a": np.ones((3, 7))}, {"a": (3, 4)})
    assert isinstance(found["a"], np.ndarray) and found["a"].shape == (3, 4)


@pytest.mark.parametrize("size", [(4, 5), (3, 3), (2, 4), (3,), (3, 4, 1), (4, 3)])
def test_a_shape_that_is_no_padding_is_an_error(size):
    with pytest.raises(ValueError, match=r"a of shape \(3, 4\) cannot be padded to"):
        padding.padded({"a": np.ones((3, 4))}, {"a": size})


def test_other_paths_are_an_error():
    for function in (padding.padded, padding.cut):
        for shapes in ({"a": (3, 4)}, {**SHAPES, "more": (1,)}):
            with pytest.raises(ValueError, match="different parameters, for example"):
                function(values(), shapes)
    with pytest.raises(ValueError, match=r"different parameters, for example \['a'\]"):
        padding.stacked([values(), {path: x for path, x in values().items() if path != "a"}])


def test_stacked_runs_have_a_first_axis_on_the_host():
    runs = [values(seed) for seed in range(3)]
    found = padding.stacked([{path: jnp.asarray(x) for path, x in run.items()} for run in runs])
    for path, leaf in found.items():
        assert isinstance(leaf, np.ndarray)
        np.testing.assert_array_equal(leaf, np.stack([run[path] for run in runs]))
