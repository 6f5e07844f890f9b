"""LoHa and LoKr equal peft's: leaves and counts, outputs, merged weights, gradients and steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx
from peft.tuners.lokr.layer import factorization

import lora_jax
from lora_jax.low_rank.lokr import factorised
from tests.low_rank.layer_cases import key, random_input
from tests.low_rank.torch_layers import Holder

torch.set_num_threads(1)
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of at most some hundred products in another order


def _linear(inputs=12, outputs=8):
    return {
        "torch": lambda: torch.nn.Linear(inputs, outputs),
        "ours": lambda: nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0)),
        "x": (4, 7, inputs),
        "dims": 0,
    }


def _conv(dims, inputs=4, outputs=8):
    def ours():
        return nnx.Conv(inputs, outputs, (3,) * dims, padding=1, strides=2, rngs=nnx.Rngs(0))

    kind = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d}[dims]
    return {
        "torch": lambda: kind(inputs, outputs, 3, padding=1, stride=2),
        "ours": ours,
        "x": (2, *(6,) * dims, inputs),
        "dims": dims,
    }


# name: (layer, method, arguments of both)
PEFT_CASES = {
    "loha, factors": (_linear(), "loha", {"rank": 2, "alpha": 6.0}),
    "loha, formed": (_linear(), "loha", {"rank": 3, "alpha": 2.0}),
    "loha, formed, wide": (_linear(8, 12), "loha", {"rank": 4, "alpha": 4.0}),
    "loha, conv 1D": (_conv(1), "loha", {"rank": 2, "alpha": 3.0}),
    "loha, conv 2D": (_conv(2), "loha", {"rank": 2, "alpha": 3.0}),
    "loha, conv 2D, formed": (_conv(2), "loha", {"rank": 3, "alpha": 3.0}),
    "lokr, whole": (_linear(), "lokr", {"rank": 3, "alpha": 6.0}),
    "lokr, second decomposed": (_linear(24, 20), "lokr", {"rank": 2, "alpha": 3.0}),
    "lokr, both decomposed": (
        _linear(36, 16), "lokr", {"rank": 2, "alpha": 6.0, "decompose_both": True},
    ),
    "lokr, both decomposed, factor": (
        _linear(32, 24), "lokr", {"rank": 1, "alpha": 2.0, "decompose_both": True, "factor": 8},
    ),
    "lokr, factor that does not divide": (
        _linear(12, 14), "lokr", {"rank": 2, "alpha": 2.0, "factor": 5},
    ),
    "lokr, prime numbers": (_linear(11, 7), "lokr", {"rank": 2, "alpha": 2.0}),
    "lokr, conv 1D, decomposed": (_conv(1, 8, 16), "lokr", {"rank": 1, "alpha": 3.0}),
    "lokr, conv 2D, whole": (_conv(2), "lokr", {"rank": 2, "alpha": 3.0}),
    "lokr, conv 2D, decomposed": (_conv(2, 8, 16), "lokr", {"rank": 1, "alpha": 3.0}),
}  # fmt: skip
# Our leaf is peft's with its sides in the other order.
THEIR_NAMES = {
    "loha": {"a1": "hada_w1_b", "b1": "hada_w1_a", "a2": "hada_w2_b", "b2": "hada_w2_a"},
    "lokr": {
        "w1": "lokr_w1", "w1_a": "lokr_w1_b", "w1_b": "lokr_w1_a",
        "w2": "lokr_w2", "w2_a": "lokr_w2_b", "w2_b": "lokr_w2_a",
    },
}  # fmt: skip


def _config(method, rank, alpha, factor=-1, decompose_both=False):
    shared = {"r": rank, "alpha": alpha, "target_modules": ["layer"]}
    if method == "loha":
        return peft.LoHaConfig(**shared)
    return peft.LoKrConfig(**shared, decompose_factor=factor, decompose_both=decompose_both)


def _our_layout(array, like):
    """Peft's leaf (or its gradient) as ours: a convolution's window is last there and first here."""
    if array.ndim > 2:  # a whole matrix with its window: (k, n, *window)
        array = np.moveaxis(array, (0, 1), (-1, -2))
    elif like.ndim > 2:  # (rank, n * window), or (out, ...) of a group
        *window, n, rank = like.shape if like.shape[0] != 1 else like.shape[1:]
        array = np.moveaxis(array.reshape(rank, n, *window), (0, 1), (-1, -2))
    else:
        array = array.T
    return array.reshape(like.shape)


class Pair:
    """A layer with the update in peft and here: equal weights, random matrices."""

    def __init__(self, layer, name, arguments):
        torch.manual_seed(0)
        self.dims, self.name = layer["dims"], name
        self.model = peft.get_peft_model(Holder(layer["torch"]()), _config(name, **arguments))
        self.layer = self.model.base_model.model.layer
        base = layer["ours"]()
        base.kernel[...] = jnp.asarray(self.weight())
        base.bias[...] = jnp.asarray(self.layer.base_layer.bias.detach().numpy())
        self.base = base
        self.method = getattr(lora_jax, name)("", **arguments)
        self.inserted = self.method.insert(base, key(0))
        self.started = self.theirs()
        self.ours = nnx.clone(self.inserted)
        with torch.no_grad():
            for parameter in self.torch_trainable().values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        for leaf, value in self.theirs().items():
            getattr(self.ours.lora, leaf)[...] = jnp.asarray(value)
        self.x = random_input(layer["x"])

    def weight(self):
        weight = self.layer.base_layer.weight.detach().numpy().copy()
        return np.moveaxis(weight, (0, 1), (-1, -2))

    def torch_trainable(self):
        found = {}
        for leaf, theirs in THEIR_NAMES[self.name].items():
            if "default" in (group := getattr(self.layer, theirs)):
                found[leaf] = group["default"]
        return found

    def theirs(self, gradients=False):
        return {
            leaf: _our_layout(
                (p.grad if gradients else p.detach()).numpy().copy(),
                getattr(self.inserted.lora, leaf),
            )
            for leaf, p in self.torch_trainable().items()
        }

    def run_theirs(self):
        x = np.array(self.x)
        outputs = self.model(torch.tensor(np.moveaxis(x, -1, 1) if self.dims else x))
        return torch.movedim(outputs, 1, -1) if self.dims else outputs


@pytest.fixture(scope="module", params=PEFT_CASES)
def pair(request):
    return Pair(*PEFT_CASES[request.param])


def test_leaves_counts_and_sizes_at_the_start_are_pefts_and_change_nothing(pair):
    """A uniform value is at most its bound, and half of a hundred values are above half of it."""
    ours = {path[-1]: leaf for path, leaf in nnx.to_flat_state(nnx.state(pair.inserted.lora))}
    assert {name: leaf.shape for name, leaf in ours.items()} == {
        name: value.shape for name, value in pair.started.items()
    }
    trained = sum(p.numel() for p in pair.model.parameters() if p.requires_grad)
    assert pair.method.summary(pair.inserted).counts()["trainable"] == trained
    for name, value in pair.started.items():
        mine = np.asarray(ours[name][...])
        if not value.any():
            assert not mine.any()
            continue
        theirs = _bound(pair.torch_trainable()[name])
        assert 0.5 * theirs < np.abs(mine).max() <= theirs * (1 + 1e-6)
        assert 0.5 * theirs < np.abs(value).max() <= theirs * (1 + 1e-6)
    np.testing.assert_array_equal(pair.inserted(pair.x), pair.base(pair.x))


def _bound(parameter):
    """Of torch's kaiming_uniform_ with a = sqrt(5)."""
    return 1 / np.sqrt(np.prod(parameter.shape[1:]))


def test_output_and_merged_weight_are_pefts(pair):
    theirs = pair.run_theirs().detach().numpy()
    np.testing.assert_allclose(pair.ours(pair.x), theirs, **FLOAT32)
    assert np.abs(theirs - pair.base(pair.x)).max() > 1e-3
    merged = lora_jax.merge(pair.ours)
    before = pair.layer.base_layer.weight.detach().clone()
    pair.layer.merge()
    np.testing.assert_allclose(merged.kernel[...], pair.weight(), **FLOAT32)
    pair.layer.unmerge()
    with torch.no_grad():
        pair.layer.base_layer.weight.copy_(before)
    np.testing.assert_allclose(merged(pair.x), theirs, **FLOAT32)


def test_gradients_and_five_steps_of_adamw_are_pefts(pair):
    labels = pair.method.labels(pair.ours)
    structure, trainable, frozen = lora_jax.split(pair.ours, labels)
    assert set(trainable) == {f"lora/{name}" for name in pair.torch_trainable()}
    decay = optax.adamw(1e-2, weight_decay=0.1)
    tx = lora_jax.optimizer({path: labels[path] for path in trainable}, decay)
    target = np.random.default_rng(1).normal(size=pair.run_theirs().shape).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(trainable):
        model = lora_jax.join(structure, trainable, frozen)
        return jnp.mean((model(pair.x) - target) ** 2)

    state = tx.init(trainable)
    kept = {name: p.detach().clone() for name, p in pair.torch_trainable().items()}
    adamw = torch.optim.AdamW(pair.torch_trainable().values(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        adamw.zero_grad()
        theirs = ((pair.run_theirs() - torch.tensor(target)) ** 2).mean()
        theirs.backward()
        value, gradients = loss(trainable)
        assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
        for name, gradient in pair.theirs(gradients=True).items():
            size = np.abs(
                gradient
            ).max()  # what nearly cancels has the rounding of what it is summed of
            mine = gradients[f"lora/{name}"]
            np.testing.assert_allclose(mine, gradient, rtol=1e-4, atol=1e-5 * size + 1e-7)
        adamw.step()
        updates, state = tx.update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        for name, value in pair.theirs().items():  # Adam divides small gradients by their own size
            np.testing.assert_allclose(trainable[f"lora/{name}"], value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for name, parameter in pair.torch_trainable().items():
            parameter.copy_(kept[name])


@pytest.mark.parametrize("factor", [-1, 0, 1, 2, 5, 8, 64])
def test_sizes_divide_as_in_peft(factor):
    for size in [*range(1, 130), 768, 3072, 50257]:
        assert factorised(size, factor) == factorization(size, factor)
