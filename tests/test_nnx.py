"""The habits of Flax NNX: its optimizer, gradients, jit and tabulate on adapted models."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.training.optimizer import adamw

X = jax.random.normal(jax.random.key(1), (4, 6, 8))


class Model(nnx.Module):
    """Every kind of layer that has a LoRA form, a norm with statistics, and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.einsum = nnx.Einsum("bti,io->bto", (8, 8), (8,), rngs=rngs)
        self.convolution = nnx.Conv(8, 8, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.table = nnx.Embed(5, 8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jax.nn.tanh(layer(x))
        x = self.convolution(self.einsum(self.attention(self.dropout(self.norm(x)))))
        return self.head(x + self.table(jnp.argmax(self.table.attend(x), -1)))


EVERY = r"layers/.*|attention/(query|key|value|out)|einsum|convolution|table"
Optimizer = Callable[[dict[str, str]], optax.GradientTransformation]
OPTIMIZERS: dict[str, Optimizer] = {
    "one": lambda labels: lj.optimizer(labels, optax.adam(1e-2)),
    "by group, clipped together": lambda labels: lj.optimizer(
        labels,
        {"lora": optax.adam(1e-2), "bias": optax.sgd(0.1), "head": optax.adamw(1e-3)},
        lambda tx: optax.chain(optax.clip_by_global_norm(0.1), tx),
    ),
    "accumulated with decay": lambda labels: adamw(
        labels, 1e-2, weight_decay=0.1, max_grad_norm=0.1, accumulate=2
    ),
}


def loss(model: nnx.Module) -> jax.Array:
    return jnp.mean(model(X) ** 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_flax_own_route_trains_the_same_values(name: str):
    method = lj.lora(r"layers/.*", rank=2, bias="lora_only", head="head/.*")
    adapted = method.insert(Model(nnx.Rngs(0)), jax.random.key(0))
    labels, wrt = method.labels(adapted), lj.trainable(method, adapted)
    before = lj.parameters(adapted)
    structure, trainable, frozen = lj.split(nnx.clone(adapted), labels)

    optimizer = nnx.Optimizer(adapted, OPTIMIZERS[name](labels), wrt=wrt)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> jax.Array:
        value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, gradients)
        return value

    tx = OPTIMIZERS[name](labels)  # of all labels, for the trainable part

    @jax.jit
    def split_step(trainable: dict, state: optax.OptState) -> tuple[dict, optax.OptState]:
        gradients = jax.grad(lambda t: loss(lj.join(structure, t, frozen)))(trainable)
        updates, state = tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state

    state = tx.init(trainable)
    for _ in range(4):
        step(adapted, optimizer)
        trainable, state = split_step(trainable, state)
    after = lj.parameters(adapted)
    for path, value in trainable.items():  # two programs: the last bits may differ
        np.testing.assert_allclose(after[path], value, rtol=1e-4, atol=1e-6)
    moved = {path for path in after if np.any(np.asarray(after[path]) != before[path])}
    assert moved <= set(trainable)
    assert {labels[path] for path in moved} == {"lora", "bias", "head"}


def test_trainable_is_what_the_labels_say_and_leaves_statistics_alone():
    method = lj.lora(r"layers/.*", rank=2, head="head/.*")
    adapted = method.insert(Model(nnx.Rngs(0)), jax.random.key(0))
    state = nnx.to_flat_state(nnx.state(adapted, lj.trainable(method, adapted)))
    paths = {"/".join(map(str, path)) for path, _ in state}
    assert paths == {path for path, group in method.labels(adapted).items() if group != "frozen"}


def test_labels_of_another_model_are_refused():
    adapted = lj.lora("layers/.*", rank=2).insert(Model(nnx.Rngs(0)), jax.random.key(0))
    tx = lj.optimizer({"head/kernel": "head"}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="no label for 'attention/key/bias'"):
        nnx.Optimizer(adapted, tx, wrt=nnx.Param)


METHODS = {
    "lora": lj.lora(EVERY, rank=2),
    "dora": lj.lora(EVERY, rank=2, magnitude=True),
    "fused": lj.lora("layers/0", rank=1, parts=("q",), fused=("q", "k")),
    "prefix": lj.prefix_embed(2, tokens="table"),
}


@pytest.mark.parametrize("name", METHODS)
def test_tabulate_shows_adapted_models_and_leaves_classes_alone(name: str):
    model = Model(nnx.Rngs(0))
    adapted = METHODS[name].insert(model, jax.random.key(0))
    plain = {"force_terminal": False, "width": 200}
    unadapted = nnx.tabulate(model, X, console_kwargs=plain)
    expected = adapted(X)
    table = nnx.tabulate(adapted, X, console_kwargs=plain)
    assert ("LoRALinear" in table) == (name != "prefix")
    np.testing.assert_array_equal(adapted(X), expected)
    assert nnx.tabulate(model, X, console_kwargs=plain) == unadapted
    METHODS[name].insert(model, jax.random.key(0))  # our methods still work
