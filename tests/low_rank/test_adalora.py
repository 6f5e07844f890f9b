"""AdaLoRA equals peft over a whole run: regulariser, factors, singular values, masks and merged weights."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx

import lora_jax
from lora_jax.optimizers.adalora import Allocation, Schedule
from lora_jax.optimizers.singular_values import orthogonality

torch.set_num_threads(1)
RANK, TARGET, ALPHA = 4, 2, 6
UPDATES, WARM_UP, FINAL, EVERY = 30, 5, 10, 2
RATE = 2e-2
PLACES = ("up/lora", "down/lora")
_SIDES = {"a": "A", "e": "E", "b": "B"}


class Theirs(torch.nn.Module):
    """Two layers and a loss, as peft's regulariser wants it."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(8, 10)
        self.down = torch.nn.Linear(10, 6)

    def forward(self, x, target):
        outputs = self.down(torch.tanh(self.up(x)))
        return types.SimpleNamespace(logits=outputs, loss=((outputs - target) ** 2).mean())


class Ours(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(8, 10, rngs=rngs)
        self.down = nnx.Linear(10, 6, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


def method(**changes):
    settings = {
        "rank": RANK, "target_rank": TARGET, "alpha": ALPHA, "warm_up": WARM_UP, "final": FINAL,
        "every": EVERY,
    }  # fmt: skip
    return lora_jax.adalora(["up", "down"], **{**settings, **changes})


def loss_of(model, x, target):
    return jnp.mean((model(x) - target) ** 2)


class Run:
    """Our run: model, optimizer and data."""

    def __init__(self, base, method, updates=UPDATES, seed=0):
        self.adapted = method.insert(base, jax.random.key(seed))
        self.labels = method.labels(self.adapted)
        self.structure, self.trainable, self.frozen = lora_jax.split(self.adapted, self.labels)
        around = method.around(self.adapted, updates=updates)
        labels = {path: self.labels[path] for path in self.trainable}
        self.tx = lora_jax.optimizer(labels, optax.adamw(RATE, weight_decay=0.1), around)
        self.state = self.tx.init(self.trainable)

    def step(self, trainable, state, x, target):
        def loss(trainable):
            return loss_of(lora_jax.join(self.structure, trainable, self.frozen), x, target)

        value, gradients = jax.value_and_grad(loss)(trainable)
        updates, state = self.tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    def model(self, trainable):
        return lora_jax.join(self.structure, trainable, self.frozen)


def allocation(state):
    is_one = lambda node: isinstance(node, Allocation)  # noqa: E731
    return next(node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node))


def batches(count=UPDATES):
    random = np.random.default_rng(0)
    return [
        [jnp.asarray(random.normal(size=(12, size)), jnp.float32) for size in (8, 6)]
        for _ in range(count)
    ]


class Both:
    """The same model with AdaLoRA in peft and here, equal at the start, and the record of a run."""

    def __init__(self):
        torch.manual_seed(0)
        config = peft.AdaLoraConfig(
            init_r=RANK, target_r=TARGET, lora_alpha=ALPHA, target_modules=["up", "down"],
            total_step=UPDATES, tinit=WARM_UP, tfinal=FINAL, deltaT=EVERY,
        )  # fmt: skip
        self.peft = peft.get_peft_model(Theirs(), config)
        self.theirs = self.peft.base_model.model
        base = Ours(nnx.Rngs(0))
        for name in ("up", "down"):
            layer, own = getattr(self.theirs, name).base_layer, getattr(base, name)
            own.kernel[...] = jnp.asarray(layer.weight.detach().numpy().T)
            own.bias[...] = jnp.asarray(layer.bias.detach().numpy())
        self.base, self.method = base, method()
        self.run = Run(base, self.method)
        self.start = {path: np.asarray(v) for path, v in self.run.trainable.items()}
        trainable = {path: jnp.asarray(v) for path, v in self.of_theirs().items()}
        state, step = self.run.state, jax.jit(self.run.step)
        self.records = []
        adamw = torch.optim.AdamW(
            [p for p in self.peft.parameters() if p.requires_grad], lr=RATE, weight_decay=0.1
        )
        for number, (x, target) in enumerate(batches(), start=1):
            adamw.zero_grad()
            # base_model, since PeftModel itself leaves the regulariser out
            theirs = self.peft.base_model(*(torch.tensor(np.asarray(v)) for v in (x, target))).loss
            theirs.backward()
            adamw.step()
            self.peft.base_model.update_and_allocate(number)
            ours = 0.5 * orthogonality(trainable, PLACES)
            trainable, state, value = step(trainable, state, x, target)
            allocator = self.peft.base_model.rankallocator
            pattern = self.peft.peft_config["default"].rank_pattern
            self.records.append({
                "losses": (float(value + ours), float(theirs.detach())),
                "ours": {path: np.asarray(v) for path, v in trainable.items()},
                "theirs": self.of_theirs(),
                "measured": tuple(
                    {p: np.asarray(v) for p, v in values.items()}
                    for values in allocation(state)[1:3]
                ),
                "theirs measured": tuple(
                    self.of_theirs(lambda name, _, values=values: values.get(name))
                    for values in (allocator.exp_avg_ipt, allocator.exp_avg_unc)
                ),
                "kept": {p: np.asarray(k) for p, k in allocation(state).kept.items()},
                "pattern": pattern and {
                    f"{place}/e": np.asarray(pattern[_name(place)]) for place in PLACES
                },
            })  # fmt: skip
        self.trainable, self.state = trainable, state

    def of_theirs(self, value=lambda name, parameter: parameter):
        """peft's parameters, or what it holds for them, in our layout."""
        found = {
            f"{name}/lora/{ours}": value(
                f"{name}.lora_{side}.default", getattr(layer, f"lora_{side}")["default"]
            )
            for name, layer in (("up", self.theirs.up), ("down", self.theirs.down))
            for ours, side in _SIDES.items()
        }
        return {path: _transposed(v) for path, v in found.items() if v is not None}


def _transposed(values):
    array = values.detach().numpy().T.copy()
    return array[0] if array.shape[0] == 1 else array


def _name(place):
    return f"{place.removesuffix('/lora')}.lora_E.default"


@pytest.fixture(scope="module")
def both():
    return Both()


def test_the_start_is_that_of_peft_and_changes_nothing(both):
    x = batches(1)[0][0]
    np.testing.assert_array_equal(both.run.adapted(x), both.base(x))
    for place in PLACES:
        assert not both.start[f"{place}/e"].any()
    drawn = lora_jax.adalora("", rank=32).insert(
        nnx.Linear(64, 64, rngs=nnx.Rngs(0)), jax.random.key(0)
    )
    for values in (drawn.lora.a[...], drawn.lora.b[...]):
        assert abs(float(jnp.std(values)) / 0.02 - 1) < 0.05  # 2,048 draws: 1.6% standard error
        assert abs(float(jnp.mean(values))) < 0.002
    assert not np.array_equal(drawn.lora.a[...], drawn.lora.b[...].T)


def test_every_update_of_a_run_is_that_of_peft(both):
    """Losses with the regulariser, and what trains: 30 steps of Adam let rounding grow."""
    for record in both.records:
        ours, theirs = record["losses"]
        assert ours == pytest.approx(theirs, rel=1e-5)
        for path, value in record["theirs"].items():
            np.testing.assert_allclose(record["ours"][path], value, rtol=1e-4, atol=2e-5)
            if path.endswith("e"):  # what is masked is exactly zero in both
                np.testing.assert_array_equal(record["ours"][path] == 0, value == 0)


def test_importance_is_measured_as_by_peft_until_the_ranks_are_final(both):
    end = UPDATES - FINAL
    for number, record in enumerate(both.records, start=1):
        for ours, theirs in zip(record["measured"], record["theirs measured"], strict=True):
            assert len(theirs) == (6 if number < end else 0)  # then peft forgets them
            for path, value in theirs.items():
                size = np.abs(value).max()
                np.testing.assert_allclose(ours[path], value, rtol=1e-3, atol=1e-5 * size)
        if number >= end:
            for ours, last in zip(
                record["measured"], both.records[end - 2]["measured"], strict=True
            ):
                for path, value in ours.items():
                    np.testing.assert_array_equal(value, last[path])


def test_every_choice_of_ranks_is_that_of_peft(both):
    patterns = [record["pattern"] for record in both.records]
    assert [p is not None for p in patterns].index(
        True
    ) == 5  # the sixth update is the first choice
    for record in both.records[5:]:
        for path, kept in record["pattern"].items():
            np.testing.assert_array_equal(record["kept"][path], kept)
    last = both.records[-1]["kept"]
    assert sum(int(kept.sum()) for kept in last.values()) == TARGET * len(PLACES)
    assert len({tuple(k.tolist()) for r in both.records for k in r["kept"].values()}) > 3
    for path, kept in last.items():
        np.testing.assert_array_equal(both.records[-1]["ours"][path] != 0, kept)
    free = both.records[6]["ours"]  # of the seventh update: every second one chooses
    assert all(free[path].all() for path in last)


def test_merged_weights_and_outputs_are_those_of_peft(both):
    trained = both.run.model(both.trainable)
    merged = lora_jax.merge(trained)
    x = batches(1)[0][0]
    theirs = both.peft(torch.tensor(np.asarray(x)), torch.zeros(12, 6)).logits.detach().numpy()
    np.testing.assert_allclose(trained(x), theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(merged(x), trained(x), rtol=2e-5, atol=5e-6)
    for name in ("up", "down"):
        layer = getattr(both.theirs, name)
        expected = layer.base_layer.weight + layer.get_delta_weight("default")
        kernel = getattr(merged, name).kernel[...]
        np.testing.assert_allclose(kernel, expected.detach().numpy().T, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_a_step_that_is_not_compiled_is_the_same(both):
    one_layer = lora_jax.adalora("up", rank=RANK, target_rank=TARGET, final=1)
    run = Run(both.base, one_layer, updates=4)
    states = {"jit": (run.trainable, run.state), "plain": (run.trainable, run.state)}
    traced = []

    @jax.jit
    def compiled(*arguments):
        traced.append(arguments)  # counted here: JAX may leave its own count of programs at 0
        return run.step(*arguments)

    for x, target in batches(4):
        for kind, step in (("jit", compiled), ("plain", run.step)):
            states[kind] = step(*states[kind], x, target)[:2]
        for ours, plain in zip(*map(jax.tree.leaves, states.values()), strict=True):
            np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-6)
    assert len(traced) == 1
    kept = allocation(states["jit"][1]).kept
    assert sum(int(k.sum()) for k in kept.values()) == TARGET


def test_runs_side_by_side_are_those_alone(both):
    run = Run(both.base, method(warm_up=1, final=1, every=1), updates=4)
    starts = [Run(both.base, method(), seed=seed).trainable for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    state = jax.vmap(run.tx.init)(stacked)
    step = jax.jit(jax.vmap(run.step, in_axes=(0, 0, None, None)))
    alone = [(start, run.state) for start in starts]
    one = jax.jit(run.step)
    for x, target in batches(4):
        stacked, state, _ = step(stacked, state, x, target)
        alone = [one(*values, x, target)[:2] for values in alone]
    for number, (values, own) in enumerate(alone):
        for path, value in values.items():
            np.testing.assert_allclose(stacked[path][number], value, rtol=1e-4, atol=1e-6)
        for path, kept in allocation(own).kept.items():
            np.testing.assert_array_equal(allocation(state).kept[path][number], kept)
    masks = [np.concatenate([*map(np.asarray, allocation(s).kept.values())]) for _, s in alone]
    assert not all(np.array_equal(masks[0], mask) for mask in masks)


@pytest.mark.slow
def test_nnx_optimizer_takes_it_too(both):
    """Its parameters are the nested state of a model."""
    ours = method(warm_up=0, final=1)
    run = Run(both.base, ours, updates=3)
    adapted = nnx.clone(run.adapted)
    tx = lora_jax.optimizer(
        run.labels, optax.adamw(RATE, weight_decay=0.1), ours.around(adapted, updates=3)
    )
    wrt = lora_jax.trainable(ours, adapted)
    optimizer = nnx.Optimizer(adapted, tx, wrt=wrt)

    @nnx.jit
    def step(model, optimizer, x, target):
        gradients = nnx.grad(loss_of, argnums=nnx.DiffState(0, wrt))(model, x, target)
        optimizer.update(model, gradients)

    trainable, state = run.trainable, run.state
    for x, target in batches(3):
        step(adapted, optimizer, x, target)
        trainable, state, _ = run.step(trainable, state, x, target)
    found = lora_jax.parameters(adapted)
    for path, value in trainable.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-6)
    assert sum(int((found[f"{place}/e"] != 0).sum()) for place in PLACES) == TARGET * 2


def test_the_budget_is_pefts(both):
    allocator = both.peft.base_model.rankallocator
    ours = Schedule(RANK * 2, TARGET * 2, UPDATES, WARM_UP, FINAL, EVERY)
    for step in range(1, UPDATES + 1):
        assert ours.left(step) == allocator.budget_schedule(step)[0]
