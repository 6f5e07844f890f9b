"""AdaLoRA on every kind of layer, in stacks, in the trainer and in folders; what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx

import lora_jax
from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.low_rank import layers
from lora_jax.optimizers.adalora import Allocation
from lora_jax.training import ArrayBatches, Trainer, TrainSettings
from tests.low_rank.layer_cases import CASES, random_input, randomise

torch.set_num_threads(1)
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of at most some hundred products in another order
KINDS = [
    "linear", "general, from heads", "general, two batch axes", "einsum, experts", "embed",
    "conv 2D, groups", "transposed 1D, stored transposed",
]  # fmt: skip


def randomised(model, seed=1):
    random = np.random.default_rng(seed)
    for layer in layers.adapted_layers(model).values():
        for update in layer.lora.members().values():
            for variable in (update.a, update.e, update.b):
                variable[...] = jnp.asarray(random.normal(size=variable.shape), jnp.float32)
    return model


def by_formula(layer, alpha):
    """W + alpha / (rank + 1e-5) * A diag(e) B in float64, one map after another."""
    roles, update = layer.roles(), layer.lora
    batch, inputs, outputs = roles.sizes(layer.view())
    order = roles.batch + roles.inputs + roles.outputs
    w = np.asarray(layer.weight_values(), np.float64).reshape(layer.view())
    maps = np.transpose(w, order).reshape(-1, int(np.prod(inputs)), int(np.prod(outputs)))
    rank, count = update.e.shape[-1], len(maps)
    a = np.asarray(update.a[...], np.float64).reshape(count, -1, rank)
    e = np.asarray(update.e[...], np.float64).reshape(count, rank)
    b = np.asarray(update.b[...], np.float64).reshape(count, rank, -1)
    scale = alpha / (rank + 1e-5)
    total = np.stack(
        [w + scale * a @ np.diag(e) @ b for w, a, e, b in zip(maps, a, e, b, strict=True)]
    )
    back = np.argsort(order)
    return np.transpose(total.reshape(batch + inputs + outputs), back).reshape(layer.weight_shape())


@pytest.mark.parametrize("name", KINDS)
def test_merged_weight_is_the_formulas_and_merged_equals_unmerged(name):
    make, shape, rank = CASES[name]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    table = isinstance(base, nnx.Embed)
    x = random_input(shape, integers_below=base.num_embeddings if table else None)
    method = lora_jax.adalora("", rank=rank, target_rank=1, alpha=1.5 * rank)
    adapted = method.insert(base, jax.random.key(0))
    np.testing.assert_array_equal(adapted(x), base(x))
    randomised(adapted)
    merged = lora_jax.merge(adapted)
    weight = merged.embedding if table else merged.kernel
    np.testing.assert_allclose(weight[...], by_formula(adapted, 1.5 * rank), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(adapted(x) - base(x))).max() > 0.05
    batch, inputs, outputs = map(int, map(np.prod, adapted.roles().sizes(adapted.view())))
    count = method.summary(adapted).counts()["trainable"]
    assert count == batch * rank * (inputs + 1 + outputs)


def test_a_convolution_is_that_of_peft():
    """Output, gradients and merged weight; peft's A has the axes (inputs, height, width) in one."""
    torch.manual_seed(0)
    holder = torch.nn.Sequential()
    holder.add_module("layer", torch.nn.Conv2d(3, 5, 2))
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, target_modules=["layer"], total_step=9
    )
    theirs = peft.get_peft_model(holder, config).base_model.model.layer
    for parameters in (theirs.lora_A, theirs.lora_E, theirs.lora_B):
        torch.nn.init.normal_(parameters["default"])
    base = nnx.Conv(3, 5, (2, 2), padding="VALID", rngs=nnx.Rngs(0))
    base.kernel[...] = jnp.asarray(theirs.base_layer.weight.detach().numpy().transpose(2, 3, 1, 0))
    base.bias[...] = jnp.asarray(theirs.base_layer.bias.detach().numpy())
    adapted = lora_jax.adalora("", rank=4, target_rank=2, alpha=6).insert(base, jax.random.key(0))

    def in_our_layout(of):
        values = {s: of(getattr(theirs, f"lora_{s}")["default"]).numpy() for s in "AEB"}
        a = values["A"].reshape(4, 3, 2, 2).transpose(2, 3, 1, 0)[None]
        return {"a": a, "e": values["E"].T, "b": values["B"].T[None]}

    for name, value in in_our_layout(lambda p: p.detach()).items():
        getattr(adapted.lora, name)[...] = jnp.asarray(value)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    outputs = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    (outputs**2).mean().backward()
    ours = np.asarray(adapted(jnp.asarray(x))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, outputs.detach().numpy(), rtol=1e-4, atol=1e-4)
    loss = lambda model: jnp.mean(model(jnp.asarray(x)) ** 2)  # noqa: E731
    gradients = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted)
    for name, value in in_our_layout(lambda p: p.grad).items():
        np.testing.assert_allclose(gradients.lora[name][...], value, rtol=1e-4, atol=1e-4)
    merged = lora_jax.merge(adapted).kernel[...]
    expected = (theirs.base_layer.weight + theirs.get_delta_weight("default")).detach().numpy()
    np.testing.assert_allclose(merged, expected.transpose(2, 3, 1, 0), **FLOAT32)


# --- Stacks, and parts of a projection ------------------------------------------------------------


class Stacked(nnx.Module):
    """Three layers in one scan."""

    def __init__(self, rngs):
        make = lambda r: nnx.Linear(5, 5, rngs=r)  # noqa: E731
        self.block = nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)

    def __call__(self, x):
        graphdef, state = nnx.split(self.block)
        step = lambda x, layer: (jnp.tanh(nnx.merge(graphdef, layer)(x)), None)  # noqa: E731
        return jax.lax.scan(step, x, state)[0]


class Apart(nnx.Module):
    """The same layers one by one."""

    def __init__(self, stacked):
        graphdef, state = nnx.split(stacked.block)
        self.block = nnx.List(
            [nnx.merge(graphdef, jax.tree.map(lambda v, i=i: v[i], state)) for i in range(3)]
        )

    def __call__(self, x):
        for layer in self.block:
            x = jnp.tanh(layer(x))
        return x


def trained(adapted, method, updates):
    """The trained parameters after some updates, and what is kept."""
    labels = method.labels(adapted)
    structure, trainable, frozen = lora_jax.split(adapted, labels)
    around = method.around(adapted, updates=updates)
    own = {path: labels[path] for path in trainable}
    tx = lora_jax.optimizer(own, optax.adam(0.02), around)
    random = np.random.default_rng(0)

    @jax.jit
    def step(trainable, state, x, target):
        def loss(trainable):
            return jnp.mean((lora_jax.join(structure, trainable, frozen)(x) - target) ** 2)

        changes, state = tx.update(jax.grad(loss)(trainable), state, trainable)
        return optax.apply_updates(trainable, changes), state

    state = tx.init(trainable)
    for _ in range(updates):
        x, target = jnp.asarray(random.normal(size=(2, 8, 5)), jnp.float32)
        trainable, state = step(trainable, state, x, target)
    is_one = lambda node: isinstance(node, Allocation)  # noqa: E731
    found = next(node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node))
    return lora_jax.join(structure, trainable, frozen), found.kept


def test_layers_of_a_stack_have_ranks_of_their_own():
    """A run with a stack is the one with its layers apart."""
    base = Stacked(nnx.Rngs(0))
    stacked = lora_jax.adalora("block", rank=3, target_rank=1, warm_up=2, final=1)
    apart = lora_jax.adalora("block/.*", rank=3, target_rank=1, warm_up=2, final=1)
    one = stacked.insert(base, jax.random.key(0))
    other = apart.insert(Apart(base), jax.random.key(1))
    assert one.block.lora.e.shape == (3, 3)
    for number, layer in enumerate(other.block):
        for side in "aeb":
            getattr(layer.lora, side)[...] = getattr(one.block.lora, side)[number]
    one, kept = trained(one, stacked, 8)
    other, kept_apart = trained(other, apart, 8)
    ranks = np.asarray(kept["block/lora/e"])
    assert ranks.sum() == 3
    assert len(set(ranks.sum(axis=1).tolist())) > 1
    for number, layer in enumerate(other.block):
        np.testing.assert_array_equal(ranks[number], kept_apart[f"block/{number}/lora/e"])
        for side in "aeb":
            ours = getattr(one.block.lora, side)[number]
            np.testing.assert_allclose(ours, getattr(layer.lora, side)[...], rtol=1e-4, atol=1e-5)


def test_parts_of_a_fused_projection_and_targets_have_ranks_of_their_own():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.qkv, self.out = nnx.Linear(5, 9, rngs=rngs), nnx.Linear(9, 5, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.qkv(x)))

    method = lora_jax.adalora({
        "qkv": {"rank": 2, "target_rank": 1, "parts": ("q", "v"), "fused": ("q", "k", "v")},
        "out": {"rank": 8, "target_rank": 3, "too_large": "cap"},
    })  # fmt: skip
    base = Model(nnx.Rngs(0))
    adapted = method.insert(base, jax.random.key(0))
    assert adapted.out.lora.e.shape == (5,)
    assert adapted.out.lora.scale == pytest.approx(8 / (8 + 1e-5), rel=1e-12)
    assert "capped from rank 8" in str(method.summary(adapted))
    adapted, kept = trained(adapted, method, 3)
    assert set(kept) == {"qkv/lora/q/e", "qkv/lora/v/e", "out/lora/e"}
    assert sum(int(k.sum()) for k in kept.values()) == 1 + 1 + 3
    left = adapted.qkv.lora.q.e[...], adapted.qkv.lora.v.e[...], adapted.out.lora.e[...]
    assert sum(int((e != 0).sum()) for e in left) == 5
    merged = lora_jax.merge(adapted)
    np.testing.assert_array_equal(merged.qkv.kernel[:, 3:6], base.qkv.kernel[:, 3:6])


# --- With the rest of the library -----------------------------------------------------------------


class Model(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(32, 8, rngs=rngs), nnx.Linear(8, 32, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


METHOD = lora_jax.adalora(["up", "down"], rank=4, target_rank=2, warm_up=1, final=2, every=2)


@pytest.fixture(scope="module")
def base():
    return Model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, 32)), jnp.float32)


def test_saved_and_loaded_is_bit_equal_and_verified(base, x, tmp_path):
    adapted = randomised(METHOD.insert(base, jax.random.key(0)))
    lora_jax.save(tmp_path / "adapter", adapted, METHOD, base)
    loaded = lora_jax.load(tmp_path / "adapter", base)
    np.testing.assert_array_equal(loaded(x), adapted(x))
    for path, value in lora_jax.parameters(adapted).items():
        np.testing.assert_array_equal(lora_jax.parameters(loaded)[path], value)
    assert methods.from_json(METHOD.to_json()) == METHOD
    assert METHOD.to_json()[0]["arguments"]["every"] == 2
    lora_jax.verify(base, METHOD, x).check()


def test_an_abstract_model_has_the_shapes(base):
    abstract = nnx.eval_shape(lambda: METHOD.insert(Model(nnx.Rngs(0)), jax.random.key(0)))
    real = lora_jax.parameters(METHOD.insert(base, jax.random.key(0)))
    assert {p: v.shape for p, v in lora_jax.parameters(abstract).items()} == {
        p: v.shape for p, v in real.items()
    }
    assert METHOD.around(abstract, updates=10) is not None


def test_a_quantised_base(base, x):
    packed = lora_jax.quantise(base, "all-linear", "int8")
    adapted = METHOD.insert(packed, jax.random.key(0))
    np.testing.assert_array_equal(adapted(x), packed(x))
    randomised(adapted)
    np.testing.assert_allclose(adapted(x), lora_jax.merge(adapted)(x), rtol=1e-4, atol=2e-3)


def test_it_adds_up_with_bitfit(base, x):
    method = METHOD + lora_jax.bitfit()
    adapted = method.insert(base, jax.random.key(0))
    labels = method.labels(adapted)
    assert {labels[f"{name}/bias"] for name in ("up", "down")} == {"bias"}
    assert {labels[f"up/lora/{side}"] for side in "aeb"} == {"lora"}
    counts = method.summary(adapted).counts()
    assert counts["trainable"] == 2 * 4 * (32 + 1 + 8) + 40


def test_dropout_is_on_the_branch(base, x):
    method = lora_jax.adalora("up", rank=4, target_rank=2, dropout=0.5)
    adapted = randomised(method.insert(base, jax.random.key(0)))
    before = adapted(x)
    lora_jax.seed_dropout(adapted, jax.random.key(0))
    dropped = adapted.up.lora.drop(x)
    assert 0.3 < float(jnp.mean(dropped == 0)) < 0.7
    lora = adapted.up.lora
    low = lora.scale * (dropped @ (lora.a[...] * lora.e[...]) @ lora.b[...])
    np.testing.assert_allclose(adapted.up(x), base.up(x) + low, rtol=1e-4, atol=1e-4)
    adapted.eval()
    np.testing.assert_array_equal(adapted(x), before)


def test_the_trainer_prunes_by_itself(base, tmp_path):
    """Two epochs of four batches of which two make an update, so that there are four updates."""
    random = np.random.default_rng(0)
    data = {name: jnp.asarray(random.normal(size=(32, 32)), jnp.float32) for name in "xy"}

    def loss(model, batch, key):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    settings = TrainSettings(epochs=2, learning_rate=0.02, log_every=1, accumulate=2)
    trainer = Trainer(base, METHOD, settings)
    result = trainer.fit(ArrayBatches(data, 8), loss, tmp_path / "run")
    loaded = lora_jax.load(tmp_path / "run", base)
    assert sum(int((layer.lora.e[...] != 0).sum()) for layer in (loaded.up, loaded.down)) == 4
    assert result is not None
    short = TrainSettings(epochs=1, learning_rate=0.02, log_every=1, accumulate=2)
    with pytest.raises(InputError, match="a run of 2 updates is too short for adalora's warm_up=1"):
        Trainer(base, METHOD, short).fit(ArrayBatches(data, 8), loss, tmp_path / "short")


# --- What is refused ------------------------------------------------------------------------------


def test_a_run_without_a_length_or_too_short(base):
    adapted = METHOD.insert(base, jax.random.key(0))
    with pytest.raises(InputError, match=r"around=method\.around\(adapted, updates=N\)"):
        METHOD.around(adapted)
    with pytest.raises(InputError, match=r"3 updates is too short.*train for more than 3 updates"):
        METHOD.around(adapted, updates=3)
    with pytest.raises(InputError, match="updates must be a positive integer, got 0"):
        METHOD.around(adapted, updates=0)
    assert METHOD.around(adapted, updates=4) is not None


def test_an_optimizer_that_lacks_parameters(base):
    adapted = METHOD.insert(base, jax.random.key(0))
    params = {p: v for p, v in lora_jax.parameters(adapted).items() if "lora" in p}
    tx = METHOD.around(adapted, updates=9)(optax.sgd(0.1))
    state = tx.init(params)
    with pytest.raises(InputError, match=r"tx\.update\(gradients, state, params\)"):
        tx.update(params, state)
    with pytest.raises(InputError, match=r"does not see \['up/lora/e'\]"):
        tx.init({path: v for path, v in params.items() if path != "up/lora/e"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rank": 4}, "target_rank=8 is larger than rank=4"),
        ({"target_rank": 0}, "target_rank must be a positive integer, got 0"),
        ({"beta1": 1.0}, "beta1 must be"),
        ({"beta2": 0.0}, "beta2 must be"),
        ({"every": 0}, "every must be a positive integer, got 0"),
        ({"warm_up": -1}, "warm_up must be .*integer from 0 on, got -1"),
        ({"final": -1}, "final must be .*integer from 0 on, got -1"),
        ({"orthogonal": -0.5}, "orthogonal must be"),
        ({"targets": {"up": {"scaling": "alpha/sqrt(r)"}}}, "the scaling 'alpha/r' only"),
        ({"targets": {"up": {"every": 2}}}, r"unknown \['every'\]"),
    ],
)
def test_arguments_out_of_range(arguments, says):
    with pytest.raises(InputError, match=says):
        lora_jax.adalora(**{"targets": "up", **arguments})


def test_a_rank_larger_than_the_matrix(base):
    with pytest.raises(InputError, match="rank 12 is larger than the matrix for up"):
        lora_jax.adalora("up").insert(base, jax.random.key(0))
