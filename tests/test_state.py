"""State that is no Param: what moves in a step, what a base is, what a summary says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from state_models import (
    METHOD,
    Block,
    Model,
    Scanned,
    Table,
    arrays,
    assert_same,
    flat,
    loss,
)

import lora_jax as lj
from lora_jax import state
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement
from lora_jax.sweeps.start import together
from lora_jax.sweeps.step import initial_states, make_runs_train_step
from lora_jax.training.step import make_predict_step, make_train_step

pytestmark = pytest.mark.filterwarnings("ignore:Using 'Module.sow")
KEY = jax.random.key(0)
BATCHES = [arrays(8, seed) for seed in range(3)]


def adam(labels, trainable):
    return lj.optimizer({path: labels[path] for path in trainable}, optax.adam(1e-2))


def by_hand(model, method=METHOD, batches=BATCHES):
    """Plain nnx: `nnx.value_and_grad` and `nnx.jit`, the state moves in the model itself."""
    adapted = method.insert(model, KEY)
    labels = method.labels(adapted)
    wrt = lambda path, leaf: (  # noqa: E731
        isinstance(leaf, nnx.Param) and labels["/".join(map(str, path))] != lj.FROZEN
    )
    tx = nnx.Optimizer(adapted, optax.adam(1e-2), wrt=wrt)

    @nnx.jit
    def step(model, tx, batch, key):
        lj.seed_dropout(model, jax.random.split(key)[1])
        gradients = nnx.grad(lambda m: loss(m, batch, None), argnums=nnx.DiffState(0, wrt))(model)
        tx.update(model, gradients)

    for number, batch in enumerate(batches):
        step(adapted, tx, batch, jax.random.key(number))
    lj.seed_dropout(adapted, None)
    return adapted


def split_route(model, method=METHOD, batches=BATCHES):
    """The project's train step, and what moved."""
    adapted = method.insert(model, KEY)
    labels = method.labels(adapted)
    structure, trainable, frozen = lj.split(adapted, labels)
    tx = adam(labels, trainable)
    trainable = jax.tree.map(jnp.copy, trainable)
    optimizer_state, step = tx.init(trainable), make_train_step(structure, loss, tx)
    before = dict(frozen)
    for number, batch in enumerate(batches):
        trainable, optimizer_state, moved, _ = step(
            trainable, optimizer_state, frozen, batch, jax.random.key(number)
        )
        frozen = {**frozen, **moved}
    assert all(before[path] is frozen[path] for path in frozen if path not in moved)
    return lj.join(structure, trainable, frozen), moved


@pytest.mark.parametrize(
    "make", [Model, Scanned, lambda rngs: Scanned(rngs, "scan")], ids=["one", "stack", "nnx.scan"]
)
def test_the_split_route_is_plain_nnx(make):
    """Statistics, counts and parameters after three steps; masks differ from step to step."""
    model = make(nnx.Rngs(0))
    before = flat(model)
    ours, moved = split_route(model)
    theirs = by_hand(model)
    names = {path.rpartition("block/")[2].rpartition("blocks/")[2] for path in moved}
    assert {"norm/mean", "norm/var", "drop/rngs/count", "calls"} <= names
    assert not any("table" in path or "lora" in path or "seen" in path for path in moved)
    one, other = flat(ours), flat(theirs)
    assert one.keys() == other.keys()
    for path, value in one.items():  # float32, compiled in two ways
        np.testing.assert_allclose(value, other[path], rtol=2e-4, atol=2e-5, err_msg=path)
        if "calls" in path or "count" in path:
            assert np.all(value == 3)
    assert_same(before, flat(model))  # the model that was given is as it was


class Noisy(nnx.Module):
    """Its output is nothing but dropout masks; two modules share the streams of one `nnx.Rngs`."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.first = self.second = rngs
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        ones = jnp.ones((4, 16))
        mask = jax.random.bernoulli(self.first.noise(), 0.5, (4, 16))
        other = jax.random.bernoulli(self.second.noise(), 0.5, (4, 16))
        return self.drop(ones), mask, other, self.linear(x)


def test_every_step_draws_new_masks_and_the_same_steps_the_same_ones():
    model = Noisy(nnx.Rngs(0, dropout=1, noise=2))
    method = lj.lora("linear", rank=1)
    adapted = method.insert(model, KEY)
    structure, trainable, frozen = lj.split(adapted, method.labels(adapted))

    @jax.jit
    def step(frozen):
        model = lj.join(structure, trainable, frozen)
        drawn = model(jnp.ones(4))[:3]
        return drawn, lj.moved(frozen, model)

    seen = []
    for _ in range(3):
        drawn, moved = step(frozen)
        frozen = {**frozen, **moved}
        seen += drawn
    assert set(moved) == {"drop/rngs/count", "first/noise/count"}  # shared: at the first path only
    assert int(frozen["first/noise/count"]) == 6
    assert len({np.asarray(mask).tobytes() for mask in seen}) == 9
    eager = [part for _ in range(3) for part in model(jnp.ones(4))[:3]]
    for ours, theirs in zip(seen, eager, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_models_without_such_state_move_nothing():
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    method = lj.lora("layers/0", rank=1, dropout=0.5)
    trained, moved = split_route(model, method)
    assert moved == {}
    assert method.summary(trained).state == ()
    assert "state" not in str(method.summary(trained))
    _, _, frozen = lj.split(trained, method.labels(trained))
    assert set(frozen) == {f"layers/{n}/{leaf}" for n in (0, 1) for leaf in ("kernel", "bias")}


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.cache = nnx.Cache(jnp.zeros((8, 4)))
        self.hidden = nnx.data([jnp.arange(4.0)])

    def __call__(self, x):
        self.cache[...] = jnp.zeros((8, 4)) + self.linear(x)[:1]
        self.sow(nnx.Intermediate, "seen", x)
        return self.cache[...].mean(0) * self.hidden[0]


def test_caches_and_sown_values_are_not_kept():
    model = Decoder(nnx.Rngs(0))
    method = lj.lora("linear", rank=1)
    model(jnp.ones((8, 4)))  # leaves a sown value and a cache in the base
    adapted = method.insert(model, KEY)
    structure, trainable, frozen = lj.split(adapted, method.labels(adapted))
    assert "seen" not in frozen and "cache" in frozen and hasattr(model, "seen")
    joined = lj.join(structure, trainable, frozen)
    joined(jnp.ones((8, 4)))
    assert lj.moved(frozen, joined) == {}
    assert set(lj.base_parameters(model)) == {"linear/kernel", "linear/bias", "hidden/0"}
    kinds = {path: state.kind(leaf) for path, leaf in state.leaves(model).items()}
    assert kinds["cache"] == "cache" and kinds["seen"] == "temporary"
    # Split without insertion leaves them out, too, and the model as it was.
    _, _, all_frozen = lj.split(model, dict.fromkeys(lj.parameters(model), lj.FROZEN))
    assert "seen" not in all_frozen and len(model.seen.get_value()) == 1


def test_numbers_of_python_are_state_too():
    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 4, rngs=rngs)
            self.count = Table(0)

        def __call__(self, x):
            self.count[...] = self.count[...] + 1
            return self.linear(x)

    method = lj.lora("linear", rank=1)
    model = Counting(nnx.Rngs(0))
    batches = [{"x": batch["x"], "y": batch["x"]} for batch in BATCHES]
    trained, moved = split_route(model, method, batches)
    assert list(moved) == ["count"] and int(trained.count[...]) == 3
    assert lj.base_parameters(model)["count"].shape == ()


# --- Fingerprints ---------------------------------------------------------------------------------


def mark(model):
    return lj.fingerprint(lj.base_parameters(model, "head/.*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.block.norm.mean.set_value(m.block.norm.mean[...] + 1),
        lambda m: m.block.table.set_value(m.block.table[...] * 2),
        lambda m: m.block.calls.set_value(m.block.calls[...] + 1001),
        lambda m: m.block.linear.kernel.set_value(m.block.linear.kernel[...] * 2),
    ],
    ids=["statistics", "table", "integers", "parameters"],
)
def test_what_makes_another_base(change):
    model = Model(nnx.Rngs(0))
    model.block.calls[...] = jnp.asarray(1000)
    before = mark(model)
    change(model)
    assert mark(model) != before


def test_random_state_heads_and_types_make_no_other_base():
    model, other = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    other.block.drop.rngs = nnx.Rngs(7).dropout
    other.head = nnx.Linear(4, 2, rngs=nnx.Rngs(5))
    for variable in (other.block.linear.kernel, other.block.norm.var):
        variable.set_value(variable[...].astype(jnp.bfloat16))
    assert mark(model) == mark(other)


def test_a_base_of_parameters_has_the_fingerprint_that_it_always_had():
    """The digest that version 0.2.0.dev0 gave before statistics were in it."""
    params = {"b/kernel": jnp.arange(6.0).reshape(2, 3), "a": jnp.arange(3, dtype=jnp.int8)}
    model = nnx.Dict(b=nnx.Dict(kernel=nnx.Param(params["b/kernel"])), a=nnx.Param(params["a"]))
    assert lj.fingerprint(lj.base_parameters(model)) == lj.fingerprint(params)
    assert lj.fingerprint(params).startswith("d7706a17006efd073713ae4971843ab4909b477f91cbf76c")


def test_a_tree_in_a_variable_is_named():
    model = nnx.Dict(tree=Table({"a": jnp.ones(2)}))
    with pytest.raises(ValueError, match="the Variable tree holds a dict"):
        lj.base_parameters(model)


# --- Dropout of the branches, evaluation, sweeps --------------------------------------------------


@pytest.mark.parametrize("magnitude", [False, True])
def test_eval_and_train_switch_seeded_dropout(magnitude):
    method = lj.lora(
        {"a": {"dropout": 0.5}, "b": {"parts": ("x",), "fused": ("x", "y"), "dropout": 0.5}},
        rank=2, magnitude=magnitude,
    )  # fmt: skip
    base = nnx.Dict(a=nnx.Linear(4, 4, rngs=nnx.Rngs(0)), b=nnx.Linear(4, 4, rngs=nnx.Rngs(1)))
    model = method.insert(base, KEY)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        nnx.update(model, nnx.from_flat_state([(path, leaf.get_raw_value() + 0.5)]))
    call = lambda: [np.asarray(model[name](jnp.ones((3, 4)))) for name in "ab"]  # noqa: E731
    plain = call()
    lj.seed_dropout(model, jax.random.key(3))
    dropped = call()
    model.eval()
    assert all(np.array_equal(one, two) for one, two in zip(call(), plain, strict=True))
    model.train()
    assert all(np.array_equal(one, two) for one, two in zip(call(), dropped, strict=True))
    assert not any(np.array_equal(one, two) for one, two in zip(dropped, plain, strict=True))
    lj.seed_dropout(model, None)
    assert all(np.array_equal(one, two) for one, two in zip(call(), plain, strict=True))
    assert not [leaf for leaf in state.leaves(model).values() if state.kind(leaf) == "temporary"]


def test_evaluation_is_deterministic_uses_running_statistics_and_moves_nothing():
    adapted = METHOD.insert(Model(nnx.Rngs(0)), KEY)
    structure, trainable, frozen = lj.split(adapted, METHOD.labels(adapted))
    predict = make_predict_step(structure, lambda model, batch: model(batch["x"]))
    statistics = {"block/norm/mean": jnp.full(4, 3.0), "block/drop/rngs/count": jnp.uint32(9)}
    one, two = (predict({**trainable, **statistics}, frozen, BATCHES[0]) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    adapted.block.norm.mean[...] = jnp.full(4, 3.0)
    adapted.eval()
    np.testing.assert_allclose(one, adapted(BATCHES[0]["x"]), rtol=1e-5, atol=1e-6)
    assert np.all(frozen["block/norm/mean"] == 0)


def test_moved_values_lie_as_the_frozen_ones():
    adapted = METHOD.insert(Model(nnx.Rngs(0)), KEY)
    labels = METHOD.labels(adapted)
    structure, trainable, frozen = lj.split(adapted, labels)
    placement = Placement(make_mesh({"data": -1}), axes.of_model(adapted))
    tx = adam(labels, trainable)
    placed, frozen = placement.put(trainable), placement.put(frozen)
    step = make_train_step(structure, loss, tx, placement, trainable)
    key, optimizer_state = placement.replicate(KEY), placement.initial_state(tx.init, placed)
    for batch in BATCHES:
        placed, optimizer_state, moved, _ = step(
            placed, optimizer_state, frozen, placement.batch(batch), key
        )
        for path, value in moved.items():
            assert value.sharding == frozen[path].sharding, path  # so one program is enough
        frozen = {**frozen, **moved}
    assert step._cache_size() == 1 and len(moved) == 4


def test_sweeps_refuse_models_whose_state_moves():
    batch = BATCHES[0]

    def step_of(model):
        runs = together(model, [METHOD] * 2, [0.1, 0.2], jax.random.split(KEY, 2))
        rates = jnp.array([0.1, 0.2])
        states = initial_states(optax.adam)(runs.trainable, rates)
        step = make_runs_train_step(runs.structure, loss, optax.adam, own_batches=False)
        return step(
            runs.trainable, states, runs.values, runs.frozen, batch, jax.random.split(KEY, 2),
            np.uint32(0),
        )  # fmt: skip

    with pytest.raises(ValueError, match="writes state of its own.*block/calls.*one by one"):
        step_of(Model(nnx.Rngs(0)))

    class Quiet(Block):
        def __call__(self, x, key=None):
            return self.drop(self.norm(self.linear(x))) * self.table[...]

    model = Model(nnx.Rngs(0))
    model.block = Quiet(nnx.Rngs(0))
    model.eval()
    assert np.all(np.isfinite(step_of(model)[2]["loss"]))


def test_the_summary_lists_state():
    summary = METHOD.summary(METHOD.insert(Model(nnx.Rngs(0)), KEY))
    rows = {group.name: group for group in summary.state}
    assert list(rows) == ["RngCount", "RngKey", "BatchStat", "Table", "Variable"]
    assert (rows["BatchStat"].leaves, rows["BatchStat"].values, rows["BatchStat"].bytes) == (
        2,
        8,
        32,
    )
    assert (rows["RngKey"].kind, rows["Table"].kind) == ("random", "statistic")
    lines = [line.split() for line in str(summary).splitlines()]
    assert [
        "BatchStat",
        "2",
        "8",
        "32",
        "B",
        "kept",
        "where",
        "the",
        "model",
        "writes",
        "it",
    ] in lines
    assert summary.counts()["total"] == sum(
        leaf.size for leaf in lj.parameters(METHOD.insert(Model(nnx.Rngs(0)), KEY)).values()
    )
