"""Where arrays lie: parameters, optimizer states, batches; and that their sources stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lora_jax.data.batch import Batch, Inputs
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement, gather, in_host_memory, put

AXES = {
    "up/kernel": ("layers", "embed", "mlp"),
    "up/lora/a": ("layers", "embed", "rank"),
    "bias": ("width",),
    "table": ("vocabulary", "embed"),
}
SHAPES = {"up/kernel": (2, 8, 16), "up/lora/a": (2, 8, 3), "bias": (8,), "table": (97, 8)}
SPECS = {
    "up/kernel": PartitionSpec(None, "fsdp", "model"),
    "up/lora/a": PartitionSpec(None, "fsdp", None),
    "bias": PartitionSpec(None),
    "table": PartitionSpec(None, "fsdp"),
}


def abstract(data=1, fsdp=2, model=4):
    return Placement(AbstractMesh((data, fsdp, model), ("data", "fsdp", "model")), AXES)


def params(shapes=SHAPES):
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


@pytest.fixture
def one():
    return Placement(make_mesh({}, jax.devices()[:1]), AXES)


def test_parameters():
    found = abstract().shardings(params())
    assert {path: sharding.spec for path, sharding in found.items()} == SPECS
    other = abstract().shardings({"of/a/user": jax.ShapeDtypeStruct((3, 5), jnp.float32)})
    assert other["of/a/user"].is_fully_replicated


@pytest.mark.parametrize(
    ("sizes", "shapes", "says"),
    [
        ({"model": 3}, {"up/kernel": (2, 8, 16)},
         r"mesh: model=3 does not divide the axis 'mlp' of up/kernel, which has 16 \(shape \(2, 8, 16\)"),
        ({"fsdp": 16}, {"bias": (8,), "table": (97, 8)},
         r"mesh: fsdp=16 does not divide the axis 'embed' of table, which has 8"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_divide_is_named(sizes, shapes, says):
    with pytest.raises(ValueError, match=says):
        abstract(**sizes).shardings(params(shapes))


def test_an_unknown_name_is_an_error():
    placement = Placement(abstract().mesh, {"w": ("emebd",)})
    with pytest.raises(ValueError, match="unknown logical axis 'emebd'"):
        placement.shardings({"w": jax.ShapeDtypeStruct((4,), jnp.float32)})


LABELS = {"up/kernel": "base", "up/lora/a": "lora", "bias": "base", "table": "lora"}
OPTIMIZERS = {
    "adamw": (optax.adamw(1e-3), 2),
    "clipped": (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), 2),
    "partition": (
        optax.partition({"base": optax.adamw(1e-3), "lora": optax.adam(1e-3)}, LABELS),
        2,
    ),
    "frozen part": (
        optax.partition({"base": optax.set_to_zero(), "lora": optax.adam(1e-3)}, LABELS),
        2,
    ),
    "MultiSteps": (optax.MultiSteps(optax.adamw(1e-3), 4), 3),
    "momentum": (optax.sgd(1e-3, momentum=0.9), 1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_lies_where_its_parameter_does(kind):
    optimizer, copies = OPTIMIZERS[kind]
    state = jax.eval_shape(optimizer.init, params())
    found = abstract().state_shardings(state, params())
    assert jax.tree.structure(found) == jax.tree.structure(state)
    counts = dict.fromkeys(SHAPES, 0)
    for keys, sharding in jax.tree_util.tree_leaves_with_path(found):
        paths = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey) and k.key in SHAPES]
        if paths:
            assert sharding.spec == SPECS[paths[-1]], keys
            counts[paths[-1]] += 1
        else:
            assert sharding.is_fully_replicated, keys
    trains = [path for path in SHAPES if kind != "frozen part" or LABELS[path] == "lora"]
    assert counts == {path: copies if path in trains else 0 for path in SHAPES}


def test_state_of_another_shape_than_its_parameter_is_whole():
    """Adafactor keeps sums over rows and over columns."""
    shapes = {"table": (97, 8)}
    optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=4)
    state = jax.eval_shape(optimizer.init, params(shapes))
    found = abstract().state_shardings(state, params(shapes))
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True))
    assert any(leaf.shape in ((97,), (8,)) for leaf, _ in pairs)
    assert all(sharding.is_fully_replicated for leaf, sharding in pairs if leaf.shape != (97, 8))


def host_values():
    random = np.random.default_rng(0)
    # Large enough, and aligned, for memory that is shared instead of copied.
    return {
        path: random.normal(size=(*shape, 64)).astype(np.float32) for path, shape in SHAPES.items()
    }


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_donation_leaves_the_values_that_were_put(one, convert):
    """On a CPU a placed array can be the memory of its source; donated, it is written to."""
    source = {path: convert(value) for path, value in host_values().items()}
    before = {path: np.array(value) for path, value in source.items()}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x + 1, tree), donate_argnums=0)
    placed = one.put(source)
    for _ in range(4):
        placed = step(placed)
    for path, value in before.items():
        np.testing.assert_array_equal(np.asarray(source[path]), value)
        np.testing.assert_allclose(np.asarray(placed[path]), 16 * value + 15, rtol=1e-5, atol=1e-5)


def test_put_and_gather(one):
    values = host_values()
    placed = one.put(values)
    assert all(x.sharding.spec == SPECS[path] for path, x in placed.items())
    for path, value in gather(placed).items():
        assert isinstance(value, np.ndarray) and value.tobytes() == values[path].tobytes()
    again = one.put(placed)
    assert all((again[path] == placed[path]).all() for path in placed)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_placed_too(one, impl):
    key = jax.random.key(3, impl=impl)
    placed = put(key, one.replicated)
    assert jax.random.key_impl(placed) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.bits(placed), jax.random.bits(key))


def test_initial_state(one):
    tx = optax.MultiSteps(optax.adamw(1e-3), 2)
    placed = one.put(host_values())
    state = one.initial_state(tx.init, placed)
    expected = tx.init(placed)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_keeps_its_kind(one):
    rows = np.arange(6, dtype=np.int32).reshape(3, 2)
    slots = np.arange(4, dtype=np.int32)
    batch = Batch(Inputs(rows, rows, rows, rows), slots, slots, slots, slots)
    placed = one.batch(batch)
    assert isinstance(placed, Batch) and isinstance(placed.inputs, Inputs)
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_are_shared_out_and_cut(one):
    double = one.by_rows(lambda x, y: {"sum": x + y})
    found = double(np.arange(5), np.arange(5))
    assert isinstance(found["sum"], np.ndarray) and found["sum"].tolist() == [0, 2, 4, 6, 8]


def test_jit_knows_the_mesh_and_the_function_s_name(one):
    seen = []

    def inner(x):
        seen.append(jax.sharding.get_abstract_mesh().axis_names)
        return x

    one.jit(inner)(jnp.ones(2))
    assert seen == [("run", "data", "fsdp", "model")] and one.jit(inner).__name__ == "inner"
    assert jax.sharding.get_abstract_mesh().empty


def test_host_memory():
    with in_host_memory():
        assert jnp.ones(3).devices() == {jax.local_devices(backend="cpu")[0]}


# Several runs: a first axis


def of_many(shape=(2, 1, 2, 2)):
    return Placement(AbstractMesh(shape, ("run", "data", "fsdp", "model")), AXES).of_runs()


def stacked(runs=4):
    return params({path: (runs, *shape) for path, shape in SHAPES.items()})


def test_parameters_of_runs_are_split_by_runs_and_as_those_of_one():
    found = of_many().shardings(stacked())
    expected = {path: PartitionSpec("run", *spec) for path, spec in SPECS.items()}
    assert {path: sharding.spec for path, sharding in found.items()} == expected
    # Without that axis of the mesh nothing is split by it.
    plain = abstract().of_runs().shardings(stacked())
    assert plain["bias"].spec == PartitionSpec(None, None)
    one = Placement(of_many().mesh, AXES)
    assert {p: s.spec for p, s in one.shardings(params()).items()} == SPECS  # a base has no runs
    assert one.of_runs() == of_many() and one.each_run.spec == PartitionSpec("run")


def test_runs_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"run=2 does not divide the axis 'runs' of .* has 3"):
        of_many().shardings(stacked(3))


@pytest.mark.parametrize("kind", ["adamw", "partition", "MultiSteps"])
def test_states_of_runs_lie_where_their_parameters_do(kind):
    optimizer, copies = OPTIMIZERS[kind]
    state = jax.eval_shape(jax.vmap(optimizer.init), stacked())
    found = of_many().state_shardings(state, stacked())
    counts = dict.fromkeys(SHAPES, 0)
    for keys, sharding in jax.tree_util.tree_leaves_with_path(found):
        paths = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey) and k.key in SHAPES]
        if paths:
            assert sharding.spec == PartitionSpec("run", *SPECS[paths[-1]]), keys
            counts[paths[-1]] += 1
    assert counts == dict.fromkeys(SHAPES, copies)


def test_values_of_runs(one):
    tree = {"rate": np.arange(3.0), "scales": [jnp.ones((3, 2))], "keys": jax.random.split(KEY, 3)}
    placed = one.per_run(tree)
    assert jax.tree.structure(placed) == jax.tree.structure(tree)
    assert all(leaf.sharding.spec[0] == "run" for leaf in jax.tree.leaves(placed))
    np.testing.assert_array_equal(placed["rate"], tree["rate"])
    np.testing.assert_array_equal(
        jax.random.bits(placed["keys"][1]), jax.random.bits(tree["keys"][1])
    )


KEY = jax.random.key(0)


def packed(*lead):
    rows = np.arange(np.prod([*lead, 5, 2]), dtype=np.int32).reshape(*lead, 5, 2)
    slots = np.arange(np.prod([*lead, 4]), dtype=np.int32).reshape(*lead, 4)
    return Batch(Inputs(rows, rows + 1, rows, rows), slots, slots, slots + 2, slots)


@pytest.mark.parametrize("lead", [(), (4,)])
def test_batches_of_runs_are_split_by_runs_and_rows(monkeypatch, lead):
    """On a mesh that only has names: what would be sent where."""
    sent = []
    monkeypatch.setattr(
        "lora_jax.sharding.placement.put", lambda x, sharding: sent.append(sharding.spec) or x
    )
    batch, mesh = packed(*lead), of_many((2, 2, 2, 1)).mesh
    found = Placement(mesh, AXES).batch(batch)
    runs = ("run",) * len(lead)
    assert sent[:4] == [PartitionSpec(*runs, ("data", "fsdp"), None)] * 4
    assert sent[4:] == [PartitionSpec(*runs, None)] * 4
    for a, b in zip(found.inputs, batch.inputs, strict=True):
        assert a.shape == (*lead, 8, 2) and not a[..., 5:, :].any()  # 4 equal parts of rows
        np.testing.assert_array_equal(a[..., :5, :], b)
    for a, b in zip(found[1:], batch[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_of_runs_keeps_its_kind(one):
    placed = one.batch(packed(3))
    assert isinstance(placed, Batch) and placed.inputs.tokens.sharding.spec[0] == "run"
    jax.tree.map(np.testing.assert_array_equal, placed, packed(3))
