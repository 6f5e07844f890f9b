"""PiSSA, OLoRA, LoRA-GA, LoRA-FA, LoRA+ and LoRA-Pro: peft where it has them, else the papers' formulas in
float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, lorafa

import lora_jax
from lora_jax.costs import flops
from lora_jax.low_rank import gradients, starts
from lora_jax.low_rank.contraction import Contraction
from lora_jax.state import Fixed, Seeded
from lora_jax.training import optimizer
from tests.low_rank.layer_cases import CASES, random_input, randomise

torch.set_num_threads(1)
RANK, ALPHA, INPUTS, OUTPUTS = 3, 6.0, 12, 9
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of at most some hundred products in another order


class Holder(torch.nn.Module):
    """A model of one layer, for peft."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x):
        return self.layer(x)


class Pair:
    """A layer in peft and here, with equal weights and factors, and some steps of both."""

    def __init__(self, method, **config):
        holder = Holder()
        self.base = nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0))
        self.base.kernel[...] = jnp.asarray(holder.layer.weight.detach().numpy().T)
        self.base.bias[...] = jnp.asarray(holder.layer.bias.detach().numpy())
        settings = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=["layer"], lora_dropout=0.0, **config
        )
        self.theirs = peft.get_peft_model(holder, settings)
        self.layer = self.theirs.base_model.model.layer
        self.method = method
        self.ours = method.insert(self.base, jax.random.key(0))
        for name, value in self.factors().items():
            getattr(self.ours.lora, name)[...] = value
            if hasattr(self.ours.lora, f"{name}_start"):
                getattr(self.ours.lora, f"{name}_start")[...] = value
        random = np.random.default_rng(0)
        self.x, self.target = random.normal(size=(7, INPUTS)), random.normal(size=(7, OUTPUTS))

    def factors(self):
        """peft's factors in our layout."""
        sides = {"a": self.layer.lora_A, "b": self.layer.lora_B}
        return {
            name: jnp.asarray(side["default"].weight.detach().numpy().T.copy())
            for name, side in sides.items()
        }

    def compare_steps(self, adamw, tx, steps=5, **tolerance):
        """Steps of both from the same start: equal losses and factors."""
        labels = self.method.labels(self.ours)
        structure, trainable, frozen = lora_jax.split(self.ours, labels)

        @jax.jit
        @jax.value_and_grad
        def loss(trainable):
            outputs = lora_jax.join(structure, trainable, frozen)(jnp.asarray(self.x, jnp.float32))
            return jnp.mean((outputs - jnp.asarray(self.target, jnp.float32)) ** 2)

        state = tx.init(trainable)
        before = self.factors()
        for _ in range(steps):
            adamw.zero_grad()
            theirs = torch.mean(
                (self.theirs(torch.tensor(self.x).float()) - torch.tensor(self.target).float()) ** 2
            )
            theirs.backward()
            value, found = loss(trainable)
            assert float(value) == pytest.approx(float(theirs.detach()), rel=2e-5)
            adamw.step()
            updates, state = tx.update(found, state, trainable)
            trainable = optax.apply_updates(trainable, updates)
        for name, value in self.factors().items():
            if f"lora/{name}" in trainable:
                assert np.abs(value - before[name]).max() > 1e-3
                np.testing.assert_allclose(trainable[f"lora/{name}"], value, **tolerance)
        return trainable


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_start_of_both_factors_is_pefts(init):
    pair = Pair(lora_jax.lora("", rank=RANK, alpha=ALPHA, init=init), init_lora_weights=init)
    fresh = pair.method.insert(pair.base, jax.random.key(1)).lora
    ours = np.asarray(fresh.a[...] @ fresh.b[...])
    theirs = np.asarray(pair.factors()["a"] @ pair.factors()["b"])
    np.testing.assert_allclose(ours, theirs, **FLOAT32)  # directions have no sign of their own
    sizes = [
        np.linalg.norm(factors["a"], axis=0) for factors in (pair.factors(), {"a": fresh.a[...]})
    ]
    np.testing.assert_allclose(*sizes, rtol=1e-4)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_five_steps_from_a_start_are_pefts_whose_base_changed(init):
    pair = Pair(lora_jax.lora("", rank=RANK, alpha=ALPHA, init=init), init_lora_weights=init)
    x = torch.tensor(pair.x).float()
    changed = pair.layer.base_layer.weight.detach().numpy().T - np.asarray(pair.base.kernel[...])
    assert np.abs(changed).max() > 0.1  # peft's base is another one, ours is not
    np.testing.assert_allclose(
        pair.ours(jnp.asarray(pair.x, jnp.float32)), pair.theirs(x).detach().numpy(), **FLOAT32
    )
    adamw = torch.optim.AdamW(pair.theirs.parameters(), lr=1e-2, weight_decay=0.1)
    tx = lora_jax.optimizer(
        {"lora/a": "lora", "lora/b": "lora"}, optax.adamw(1e-2, weight_decay=0.1)
    )
    trainable = pair.compare_steps(adamw, tx, rtol=1e-4, atol=1e-5)
    structure, _, frozen = lora_jax.split(pair.ours, pair.method.labels(pair.ours))
    merged = lora_jax.merge(lora_jax.join(structure, trainable, frozen))
    pair.layer.merge()
    np.testing.assert_allclose(
        merged.kernel[...], pair.layer.base_layer.weight.detach().numpy().T, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("init", ["pissa", "olora", "lora_ga"])
@pytest.mark.parametrize(
    "name", ["linear", "einsum, heads", "conv 1D", "embed", "general, to heads"]
)
def test_nothing_changes_at_the_start_in_any_type(init, name):
    layer, shape, _ = CASES[name]
    base = layer(nnx.Rngs(0))
    randomise(base, 0)
    method = lora_jax.lora("", rank=2, init=init)
    for dtype in (jnp.float32, jnp.bfloat16):
        nnx.update(base, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(base, nnx.Param)))
        x = random_input(shape, 10 if name == "embed" else None)
        adapted = method.insert(base, jax.random.key(0))
        np.testing.assert_array_equal(base(x), adapted(x))
        for factor in (adapted.lora.a, adapted.lora.b):
            factor[...] = 1.5 * factor[...] + 0.1
        assert np.abs(np.asarray(base(x) - adapted(x), np.float32)).max() > 0.01


def test_an_approximate_decomposition_is_near_the_exact_one():
    random = np.random.default_rng(0)
    values = 2.0 ** -np.arange(40)
    q, _ = np.linalg.qr(random.normal(size=(60, 40)))
    p, _ = np.linalg.qr(random.normal(size=(40, 40)))
    matrix = jnp.asarray(q * values @ p, jnp.float32)
    exact, near = (jnp.matmul(*starts.pissa(matrix, 4, 0.5, steps)) for steps in (0, 8))
    np.testing.assert_allclose(exact, near, atol=1e-5)
    nearest = (q[:, :4] * values[:4]) @ p[:4]
    np.testing.assert_allclose(0.5 * exact, nearest, atol=1e-5)


def test_lora_ga_takes_singular_vectors_of_the_gradient():
    gradient = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS))
    a, b = starts.lora_ga(jnp.asarray(gradient, jnp.float32), RANK, gamma=16.0)
    u, _, v = np.linalg.svd(gradient)
    size = OUTPUTS**0.25 / 4
    for found, expected in ((a.T, size * u[:, :RANK].T), (b, size * v[RANK : 2 * RANK])):
        signs = np.sign(np.sum(np.asarray(found) * expected, axis=1, keepdims=True))
        np.testing.assert_allclose(np.asarray(found) * signs, expected, atol=1e-5)


def test_five_steps_of_lora_fa_are_those_of_pefts_optimizer(monkeypatch):
    monkeypatch.setattr(
        lorafa, "is_bf16_available", lambda: False
    )  # which would round its products
    method = lora_jax.lora("", rank=RANK, alpha=ALPHA, gradient="lora_fa")
    pair = Pair(method)
    adamw = create_lorafa_optimizer(pair.theirs, r=RANK, lora_alpha=ALPHA, lr=1e-2)
    assert set(method.labels(pair.ours)) == {"kernel", "bias", "lora/b"}
    tx = optimizer.adamw({"lora/b": "lora"}, 1e-2, eps=1e-6, epsilon="before")
    pair.compare_steps(adamw, tx, rtol=1e-4, atol=1e-5)


def test_the_frozen_a_of_lora_fa_comes_from_its_seed_and_is_in_no_folder(tmp_path):
    base = nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0))
    method = lora_jax.lora("", rank=RANK, gradient="lora_fa", seed=3)
    adapted = method.insert(base, jax.random.key(7))
    adapted.lora.b[...] = jnp.ones((RANK, OUTPUTS))
    lora_jax.save(tmp_path, adapted, method, base)
    adapter = lora_jax.load_adapter(tmp_path)
    assert set(adapter.values) == {"lora/b"} and not adapter.state
    again = lora_jax.load(tmp_path, base)
    np.testing.assert_array_equal(again.lora.a[...], adapted.lora.a[...])
    assert isinstance(again.lora.a, Seeded)
    other = lora_jax.lora("", rank=RANK, gradient="lora_fa", seed=4).insert(base, jax.random.key(7))
    assert np.abs(other.lora.a[...] - adapted.lora.a[...]).max() > 0.01
    adapted.lora.a[...] = (
        2 * adapted.lora.a[...]
    )  # of another seed, as from a file of another program
    lora_jax.save(tmp_path, adapted, method, base)
    np.testing.assert_array_equal(lora_jax.load(tmp_path, base).lora.a[...], adapted.lora.a[...])


def test_a_start_is_in_the_folder_with_the_factors(tmp_path):
    base = nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0))
    method = lora_jax.lora("", rank=RANK, init="pissa")
    adapted = method.insert(base, jax.random.key(0))
    adapted.lora.b[...] = adapted.lora.b[...] + 0.1
    adapted.lora.a_start[...] = adapted.lora.a_start[...] + 0.01  # another library's decomposition
    lora_jax.save(tmp_path, adapted, method, base)
    adapter = lora_jax.load_adapter(tmp_path)
    assert set(adapter.state) == {"lora/a_start", "lora/b_start"}
    again = lora_jax.load(tmp_path, base)
    assert isinstance(again.lora.a_start, Fixed)
    x = jnp.ones((2, INPUTS))
    np.testing.assert_array_equal(again(x), adapted(x))
    for use in (lora_jax.analysis.factor_pairs.from_adapter,):
        with pytest.raises(ValueError, match="to_lora"):
            use(adapter)


def test_five_steps_of_lora_plus_are_those_of_pefts_optimizer():
    method = lora_jax.lora("", rank=RANK, alpha=ALPHA, b_rate=16)
    pair = Pair(method)
    adamw = create_loraplus_optimizer(
        pair.theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    labels = {"lora/a": "lora", "lora/b": "lora"}
    tx = lora_jax.optimizer(
        labels, optax.adamw(1e-3, weight_decay=0.1), around=method.around(pair.ours)
    )
    pair.compare_steps(adamw, tx, rtol=1e-4, atol=1e-5)


def _random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def test_a_step_of_lora_pro_is_nearest_to_that_of_the_weight():
    """Theorem 2.1: no other pair of gradients changes A B by something nearer to the weight's gradient."""
    scale, full = 2.0, _random(INPUTS, OUTPUTS)
    a, b = _random(INPUTS, RANK), _random(RANK, OUTPUTS)
    with jax.enable_x64(True):
        of_a, of_b = gradients.lora_pro(
            *map(jnp.asarray, (a, b, scale * full @ b.T, scale * a.T @ full)), scale=scale
        )
        of_a, of_b = np.asarray(of_a), np.asarray(of_b)
    change = scale * (of_a @ b + a @ of_b)
    columns = np.concatenate(
        [np.kron(np.eye(INPUTS), b.T), np.kron(a, np.eye(OUTPUTS))], axis=1
    )  # of (of_a, of_b), flat, to the change, flat
    best, *_ = np.linalg.lstsq(scale * columns, full.reshape(-1), rcond=None)
    nearest = (scale * columns @ best).reshape(full.shape)
    np.testing.assert_allclose(change, nearest, atol=1e-6)  # the damping of 1e-8 is in it

    def distance(x):  # theorem 2.3: of all such pairs the one nearest to LoRA's own gradients
        moved_a, moved_b = of_a + a @ x, of_b - x @ b
        own = scale * full @ b.T, scale * a.T @ full
        return np.sum((moved_a - own[0]) ** 2) + np.sum((moved_b - own[1]) ** 2)

    smallest = distance(np.zeros((RANK, RANK)))
    for seed in range(20):
        step = 1e-3 * np.random.default_rng(seed).normal(size=(RANK, RANK))
        assert distance(step) >= smallest * (1 - 1e-9)


@pytest.mark.parametrize("rule", ["lora_pro", "lora_fa"])
def test_corrected_gradients_of_a_stack_are_those_of_its_layers(rule):
    a, b = (
        jnp.asarray(_random(4, INPUTS, RANK), jnp.float32),
        jnp.asarray(_random(4, RANK, OUTPUTS), jnp.float32),
    )
    x = jnp.asarray(_random(4, 5, INPUTS), jnp.float32)
    roles = lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,))

    def loss(a, b, roles):
        a, b = gradients.corrected(rule, roles, a, b, 2.0)
        return (
            jnp.sum(jnp.sin(x[: len(a)] @ a @ b)) if a.ndim == 3 else jnp.sum(jnp.sin(x[0] @ a @ b))
        )

    stacked = jax.grad(loss, (0, 1))(a, b, roles.stacked(1))
    alone = jax.grad(loss, (0, 1))(a[0], b[0], roles)
    plain = jax.grad(lambda a, b: jnp.sum(jnp.sin(x @ a @ b)), (0, 1))(a, b)
    for found, expected, uncorrected in zip(stacked, alone, plain, strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=2e-4, atol=1e-5)
    assert np.abs(stacked[1] - plain[1]).max() > 0.1


def test_names_tell_the_variant():
    named = {
        "lora_plus": {"b_rate": 16}, "pissa": {"init": "pissa"}, "lora_fa": {"gradient": "lora_fa"},
        "lora_pro": {"gradient": "lora_pro"}, "pissa_dora": {"init": "pissa", "magnitude": True},
        "lora": {},
    }  # fmt: skip
    for name, arguments in named.items():
        assert lora_jax.lora("", **arguments).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient": "lora_fa", "init": "pissa"}, "freezes a random A"),
        ({"gradient": "lora_fa", "b_rate": 2}, "A does not train"),
        ({"gradient": "lora_pro", "magnitude": True}, "choose one"),
        ({"svd_iterations": 3}, "svd_iterations is of init='pissa'"),
        ({"seed": 3}, "seed is of the frozen A"),
        ({"b_rate": 0}, "b_rate"),
        ({"gamma": -1.0, "init": "lora_ga"}, "gamma"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lora_jax.lora("", **arguments)


@pytest.mark.parametrize("rule", ["lora_fa", "lora_pro"])
def test_flops_are_those_without_the_correction(rule):
    """Training counts the FLOPs of every step; what the gradient's correction computes is not the model's."""
    roles = Contraction.from_letters("io")
    a, b, x = jnp.ones((4, 2)), jnp.ones((2, 3)), jnp.ones((5, 4))

    def loss(factors, correct):
        a, b = gradients.corrected(rule, roles, *factors, 2.0) if correct else factors
        return jnp.sum((x @ a @ b) ** 2)

    plain, found = (flops.training(lambda f, c=c: loss(f, c), (a, b)) for c in (False, True))
    assert found == plain > 0
