"""Checks of the partition: what trains, what it costs, and that the frozen part keeps its bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax
from lora_jax import partition
from lora_jax.low_rank import layers, seeding
from lora_jax.low_rank.contraction import Contraction
from lora_jax.training.optimizer import adamw
from lora_jax.training.step import make_train_step

FROZEN = lora_jax.FROZEN
KEY = jax.random.key(0, impl="rbg")


class Mlp(nnx.Module):
    """Residual blocks in a list (integer keys in their paths) and a head."""

    def __init__(self, width, blocks, outputs, rngs):
        def normal(key, shape, dtype):
            del key
            values = np.random.default_rng(shape[0]).normal(size=shape) / shape[0] ** 0.5
            return jnp.asarray(values, dtype)

        self.blocks = nnx.List(
            nnx.Dict(
                up=nnx.Linear(width, 4 * width, rngs=rngs, kernel_init=normal),
                down=nnx.Linear(4 * width, width, rngs=rngs, kernel_init=normal),
            )
            for _ in range(blocks)
        )
        self.head = nnx.Linear(width, outputs, rngs=rngs, kernel_init=normal)

    def __call__(self, x):
        for block in self.blocks:
            x = x + block["down"](jnp.tanh(block["up"](x)))
        return self.head(x)


METHOD = lora_jax.lora(r".*/(up|down)", rank=2, bias="all", head="head/.*")


@pytest.fixture
def small():
    """An adapted model with B not zero, its labels and a batch."""
    adapted = METHOD.insert(Mlp(6, 2, 3, nnx.Rngs(0)), KEY)
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam)):
        variable[...] = jnp.asarray(0.3 * rng.normal(size=variable.shape), jnp.float32)
    return adapted, METHOD.labels(adapted)


def batches(count, width=6, outputs=3, size=8):
    rng = np.random.default_rng(1)
    shapes = ((count, size, width), (count, size, outputs))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def loss(model, batch, key=None):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def bits(params):
    return {path: np.asarray(value).tobytes() for path, value in params.items()}


def only(params, labels, frozen):
    return {p: v for p, v in params.items() if (labels[p] == FROZEN) == frozen}


def train_split(adapted, labels, make_optimizer, data):
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    optimizer = make_optimizer(only(labels, labels, frozen=False))
    state = optimizer.init(trainable)

    @jax.jit
    def step(trainable, state, frozen, batch):
        gradients = jax.grad(lambda t: loss(lora_jax.join(structure, t, frozen), batch))(trainable)
        updates, state = optimizer.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state

    history = []
    for batch in zip(*data, strict=True):
        trainable, state = step(trainable, state, frozen, batch)
        history.append(trainable)
    return history, frozen, state


def train_whole(adapted, labels, make_optimizer, data):
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    params = {**trainable, **frozen}
    optimizer = make_optimizer(labels)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        gradients = jax.grad(lambda p: loss(lora_jax.join(structure, p, {}), batch))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for batch in zip(*data, strict=True):
        params, state = step(params, state, batch)
        history.append(params)
    return history, state


OPTIMIZERS = {
    "adamw with decay": {"weight_decay": 0.1},
    "clip": {"weight_decay": 0.1, "max_grad_norm": 0.05},
    "clip and accumulation": {"weight_decay": 0.1, "max_grad_norm": 0.05, "accumulate": 3},
}


@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_split_and_whole_tree_give_equal_bits(small, settings):
    adapted, labels = small
    data = batches(6)

    def make(own):
        return adamw(own, 0.01, **settings)

    by_split, frozen, _ = train_split(adapted, labels, make, data)
    whole, _ = train_whole(adapted, labels, make, data)
    for first, second in zip(by_split, whole, strict=True):
        assert bits(first) == bits(only(second, labels, frozen=False))
        assert bits(frozen) == bits(only(second, labels, frozen=True))
    start = lora_jax.parameters(adapted)
    for path, value in by_split[-1].items():
        assert np.any(value != start[path]), f"{path} did not train"


def test_frozen_leaves_keep_their_bits_under_decay(small):
    """optax.masked adds raw gradients to frozen leaves; decay around a partition decays them."""
    adapted, labels = small
    before = bits(only(lora_jax.parameters(adapted), labels, frozen=True))

    def make(own):
        return adamw(own, 0.1, weight_decay=0.5)

    history, _ = train_whole(adapted, labels, make, batches(5))
    assert bits(only(history[-1], labels, frozen=True)) == before
    assert "blocks/0/up/kernel" in before and "blocks/0/up/lora/a" not in before


def elements(state):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("whole", [False, True])
def test_frozen_leaves_have_no_optimizer_state(small, whole, accumulate):
    adapted, labels = small
    params = lora_jax.parameters(adapted)
    trainable = only(params, labels, frozen=False)
    own = labels if whole else only(labels, labels, frozen=False)
    optimizer = adamw(own, 0.1, weight_decay=0.1, max_grad_norm=1.0, accumulate=accumulate)
    state = optimizer.init(params if whole else trainable)
    copies = 2 if accumulate == 1 else 3  # both moments, and the sum of the gradients
    counters = elements(state) - copies * partition.count(trainable)
    assert 1 <= counters <= 12  # step counts: one for each group, and those of MultiSteps
    for leaf in jax.tree.leaves(state):
        assert leaf.shape not in {(6, 24), (24, 6)}


def test_clip_counts_trainable_gradients_only(small):
    adapted, labels = small
    params = lora_jax.parameters(adapted)
    rng = np.random.default_rng(3)
    gradients = {
        p: jnp.asarray(rng.normal(size=v.shape) * (100 if labels[p] == FROZEN else 1), jnp.float32)
        for p, v in params.items()
    }
    optimizer = lora_jax.optimizer(
        labels,
        optax.sgd(1.0),
        around=lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx),
    )
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    own = only(gradients, labels, frozen=False)
    norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in own.values()))
    assert norm > 5
    for path, update in updates.items():
        if labels[path] == FROZEN:
            assert not np.any(update)
        else:
            # float32 norm of 300 values.
            np.testing.assert_allclose(update, -gradients[path] * 0.5 / norm, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "max_grad_norm": 0.05}])
def test_accumulated_micro_batches_equal_one_batch(small, settings):
    adapted, labels = small
    x, y = batches(4)
    one = (x.reshape(1, 32, 6), y.reshape(1, 32, 3))
    by_four, _, _ = train_split(
        adapted, labels, lambda own: adamw(own, 0.01, accumulate=4, **settings), (x, y)
    )
    at_once, _, _ = train_split(adapted, labels, lambda own: adamw(own, 0.01, **settings), one)
    start = lora_jax.split(adapted, labels)[1]
    for early in by_four[:3]:
        assert bits(early) == bits(start)
    for path, value in at_once[0].items():
        # Adam's first update is lr * g / (|g| + eps): equal but for gradients near eps = 1e-8.
        np.testing.assert_allclose(by_four[3][path], value, rtol=1e-4, atol=1e-5)


def test_groups_have_optimizers_of_their_own(small):
    adapted, labels = small
    params = lora_jax.parameters(adapted)
    ones = jax.tree.map(jnp.ones_like, params)
    rates = {"lora": 1.0, "bias": 0.5, "head": 0.25}
    optimizer = lora_jax.optimizer(labels, {g: optax.sgd(rate) for g, rate in rates.items()})
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    for path, update in updates.items():
        np.testing.assert_array_equal(update, -rates.get(labels[path], 0.0) * ones[path])


@pytest.mark.parametrize("groups", [("lora", "head"), ("lora", "bias", "head", "adapter"), ()])
def test_groups_and_optimizers_must_agree(small, groups):
    with pytest.raises(ValueError, match=r"the labels hold \['bias', 'head', 'lora'\]"):
        lora_jax.optimizer(small[1], dict.fromkeys(groups, optax.sgd(1.0)))


def test_frozen_is_no_group(small):
    groups = dict.fromkeys(("lora", "bias", "head", "frozen"), optax.sgd(1.0))
    with pytest.raises(ValueError, match="frozen"):
        lora_jax.optimizer(small[1], groups)


# --- Cost -----------------------------------------------------------------------------------------


def test_cost_of_a_step_is_far_below_full_fine_tuning():
    """12.8 against 19.0 GFLOP; a clip around the partition reads frozen gradients: 19.2."""
    width, size = 512, 128
    base = nnx.eval_shape(lambda: Mlp(width, 6, 4, nnx.Rngs(0)))
    method = lora_jax.lora(r".*/(up|down)", rank=8)
    settings = {"weight_decay": 0.1, "max_grad_norm": 1.0}

    def spec(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    batch = (spec(size, width), spec(size, 4))

    def flops(model, labels, whole=False, around=False):
        structure, trainable, frozen = lora_jax.split(model, labels)
        if whole:
            trainable, frozen = {**trainable, **frozen}, {}
        own = {path: labels[path] for path in trainable}
        optimizer = adamw(own, 1e-3, **settings)
        if around:
            optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
        state = jax.eval_shape(optimizer.init, trainable)

        def step(trainable, state, frozen, batch):
            def objective(t):
                return loss(lora_jax.join(structure, t, frozen), batch)

            updates, state = optimizer.update(jax.grad(objective)(trainable), state, trainable)
            return optax.apply_updates(trainable, updates), state

        cost = jax.jit(step).lower(trainable, state, frozen, batch).compile().cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    adapted = nnx.eval_shape(lambda m: method.insert(m, KEY), base)
    labels = method.labels(adapted)
    by_split = flops(adapted, labels)
    by_labels = flops(adapted, labels, whole=True)
    full = flops(base, lora_jax.full().labels(base))
    trap = flops(adapted, labels, whole=True, around=True)
    assert by_labels == pytest.approx(by_split, rel=0.01)
    assert by_split <= 0.70 * full and by_labels <= 0.70 * full
    assert trap > 0.95 * full  # the figure the two routes avoid


# --- Split and join -------------------------------------------------------------------------------


def test_split_follows_the_labels(small):
    adapted, labels = small
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    hash(structure)
    assert set(trainable) == {path for path, group in labels.items() if group != FROZEN}
    assert set(frozen) == {path for path, group in labels.items() if group == FROZEN}
    assert "blocks/1/up/lora/a" in trainable and "blocks/1/up/kernel" in frozen


def test_join_is_the_inverse_of_split(small):
    adapted, labels = small
    joined = lora_jax.join(*lora_jax.split(adapted, labels))
    assert nnx.graphdef(joined) == nnx.graphdef(adapted)
    assert bits(lora_jax.parameters(joined)) == bits(lora_jax.parameters(adapted))
    x = batches(1)[0][0]
    np.testing.assert_array_equal(joined(x), adapted(x))


def test_lists_of_more_than_ten_blocks_keep_their_order():
    """Integer keys must not be ordered as text: 10 before 2."""
    model = Mlp(4, 12, 2, nnx.Rngs(0))
    for i, block in enumerate(model.blocks):
        block["up"].bias[...] = jnp.full(16, float(i))
    joined = lora_jax.join(*lora_jax.split(model, lora_jax.bitfit().labels(model)))
    assert [float(block["up"].bias[0]) for block in joined.blocks] == list(range(12))


class WithState(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


def test_models_with_statistics_and_random_state():
    model = WithState(nnx.Rngs(params=0, dropout=1))
    method = lora_jax.lora("linear", rank=2)
    adapted = method.insert(model, KEY)
    labels = method.labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    assert set(trainable) == {"linear/lora/a", "linear/lora/b"}
    assert {"norm/mean", "norm/var", "norm/scale"} <= set(frozen)
    assert any("rngs" in path for path in frozen)
    joined = lora_jax.join(structure, trainable, frozen)
    assert isinstance(joined.norm.mean, nnx.BatchStat)
    x = batches(1)[0][0]
    np.testing.assert_array_equal(joined(x), adapted(x))  # the same statistics and mask
    np.testing.assert_array_equal(joined.norm.mean[...], adapted.norm.mean[...])
    joined.eval(), adapted.eval()
    np.testing.assert_array_equal(joined(x), adapted(x))

    @jax.jit
    def gradient(trainable, frozen, x):
        def objective(trainable):
            return jnp.sum(lora_jax.join(structure, trainable, frozen)(x) ** 2)

        return jax.grad(objective)(trainable)

    assert np.any(gradient(trainable, frozen, x)["linear/lora/b"])


@pytest.mark.parametrize("kind", ["missing", "extra", "of the base"])
def test_labels_of_another_model_are_refused(small, kind):
    adapted, labels = small
    labels = dict(labels)
    if kind == "missing":
        del labels["head/bias"]
    elif kind == "extra":
        labels["head/scale"] = "head"
    else:
        adapted = lora_jax.strip(adapted)
    with pytest.raises(ValueError, match=r"labels and parameters differ.*(head|lora)"):
        lora_jax.split(adapted, labels)


def test_adapted_subclass_of_param_does_not_take_the_base_along(small):
    """LoRAParam is a Param: nnx.split(m, Param, LoRAParam) puts everything in the first group."""
    adapted, _ = small
    _, _, second = nnx.split(adapted, nnx.Param, nnx.LoRAParam)
    assert not nnx.to_flat_state(second)  # the trap is still there
    method = lora_jax.lora(r".*/(up|down)", rank=2)
    trainable = lora_jax.split(adapted, method.labels(adapted))[1]
    assert all("/lora/" in path for path in trainable) and len(trainable) == 8


def test_labels_are_plain_leaves_for_optax(small):
    """Labels on whole Variables do not fit the tree that optax sees."""
    adapted, labels = small
    params = lora_jax.parameters(adapted)
    assert jax.tree.structure(params) == jax.tree.structure(labels)
    assert all(isinstance(value, jax.Array) for value in params.values())
    optax.partition({g: optax.sgd(1.0) for g in set(labels.values())}, labels).init(params)


def test_first_rule_wins_and_the_rest_is_frozen():
    params = {"a/x": 1, "a/y": 2, "b/x": 3}
    rules = [lora_jax.Rule("a/x", "one"), lora_jax.Rule(".*/x", "two")]
    assert partition.labels(params, rules) == {"a/x": "one", "a/y": FROZEN, "b/x": "two"}


@pytest.mark.parametrize("pattern", ["a", "x", "a/", "A/x", "b/y"])
def test_rule_must_match_a_whole_path(pattern):
    with pytest.raises(ValueError, match=r"matches no path.*Nearest paths:\n  "):
        partition.labels({"a/x": 1, "a/y": 2, "b/x": 3}, [lora_jax.Rule(pattern, "one")])


class Int8Linear(nnx.Module):
    """A quantised frozen layer: no gradient can be taken with respect to its weight."""

    def __init__(self):
        values = np.random.default_rng(0).integers(-127, 127, (6, 4))
        self.kernel = nnx.Param(jnp.asarray(values, jnp.int8))
        self.scale = nnx.Param(jnp.full(4, 0.01))

    def __call__(self, inputs):
        return inputs @ self.kernel[...].astype(inputs.dtype) * self.scale[...]


def test_quantised_base_trains_by_the_split_route(registry):
    @layers.register(Int8Linear)
    class LoRAInt8Linear(layers.LoRALayer, Int8Linear):
        def roles(self):
            return Contraction((), (0,), (1,))

        def low_rank_output(self, inputs, a, b):
            return inputs @ a @ b

        def weight_values(self):
            return self.kernel[...].astype(jnp.float32) * self.scale[...]

    method = lora_jax.lora("", rank=2)
    adapted = method.insert(Int8Linear(), KEY)
    labels = method.labels(adapted)
    before = bits(lora_jax.split(adapted, labels)[2])
    history, frozen, _ = train_split(
        adapted, labels, lambda own: adamw(own, 0.1), batches(2, outputs=4)
    )
    assert bits(frozen) == before and frozen["kernel"].dtype == jnp.int8
    assert np.any(history[-1]["lora/b"])
    with pytest.raises(ValueError, match="stored as int8, which cannot hold the merged values"):
        lora_jax.merge(adapted)


# --- The project's train step ---------------------------------------------------------------------


def test_train_step_trains_the_trainable_part_with_fresh_dropout():

    method = lora_jax.lora(r".*/(up|down)", rank=2, dropout=0.5)
    adapted = method.insert(Mlp(6, 2, 3, nnx.Rngs(0)), KEY)
    for layer in layers.adapted_layers(adapted).values():
        layer.lora.b[...] = jnp.ones(layer.lora.b.shape)
    labels = method.labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    optimizer = adamw(only(labels, labels, frozen=False), 0.01)
    step = make_train_step(structure, loss, optimizer)
    batch = tuple(part[0] for part in batches(1))

    def run(seed):
        start = jax.tree.map(jnp.copy, trainable)  # the step donates what it is given
        return step(start, optimizer.init(start), frozen, batch, jax.random.key(seed))

    (first, _, _, metrics), (again, _, _, same), (_, _, _, other) = run(1), run(1), run(2)
    assert bits(first) == bits(again) and metrics["loss"] == same["loss"]
    assert metrics["loss"] != other["loss"]  # another mask
    assert set(first) == set(trainable)
    for path, value in first.items():
        assert np.any(value != trainable[path])

    def objective(trainable):
        model = lora_jax.join(structure, trainable, frozen)
        seeding.seed_dropout(model, jax.random.split(jax.random.key(1))[1])
        return loss(model, batch)

    norm = optax.global_norm(jax.grad(objective)(trainable))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
