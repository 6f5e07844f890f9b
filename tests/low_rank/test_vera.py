"""VeRA equals peft's on linear layers, and the paper's formula in float64 on every layer kind."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from flax import nnx

import lora_jax
from lora_jax.low_rank.updates import DropoutKey
from lora_jax.low_rank.vera import shared_matrices
from lora_jax.low_rank.vera_settings import VeRASettings
from tests.low_rank.layer_cases import CASES, adapted_copy, embed, linear, random_input, randomise

torch.set_num_threads(1)
RANK = 12  # larger than every side
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of at most a dozen products in another order


class TorchTwo(torch.nn.Module):
    """Two layers of different sizes: A has the inputs of the second, B the outputs of the first."""

    def __init__(self, transposed):
        super().__init__()
        make = torch.nn.Linear
        if transposed:
            make = lambda i, o: transformers.pytorch_utils.Conv1D(o, i)  # noqa: E731
        self.first, self.second = make(6, 9), make(9, 4)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Two(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(6, 9, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(9, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class Pair:
    """The same in peft and here: equal weights, our A and B, random vectors."""

    def __init__(self, transposed):
        self.kernel = (lambda w: w) if transposed else (lambda w: w.T)
        torch.manual_seed(0)
        config = peft.VeraConfig(
            r=RANK, target_modules=["first", "second"], fan_in_fan_out=transposed
        )
        self.model = peft.get_peft_model(TorchTwo(transposed), config)
        self.theirs = {name: getattr(self.model.base_model.model, name) for name in LAYERS}
        base = Two()
        for name, layer in self.theirs.items():
            with torch.no_grad():
                layer.base_layer.weight.normal_(std=0.4)
                layer.base_layer.bias.normal_()
            getattr(base, name).kernel[...] = self.kernel(numpy_of(layer.base_layer.weight))
            getattr(base, name).bias[...] = numpy_of(layer.base_layer.bias)
        self.method = lora_jax.vera(LAYERS, rank=RANK)
        self.ours = self.method.insert(base, jax.random.key(0))
        self.initial = {path: np.asarray(v) for path, v in self.values().items()}, self.vectors()
        a, b = shared_matrices(0, 9, 9, RANK, fan_in=9)
        self.model.base_model.vera_A["default"].copy_(torch.tensor(np.asarray(a.T)))
        self.model.base_model.vera_B["default"].copy_(torch.tensor(np.asarray(b.T)))
        with torch.no_grad():
            for vector in self.torch_vectors().values():
                vector.add_(0.3 * torch.randn_like(vector))
        for path, value in self.vectors().items():
            name, _, vector = path.split("/")
            getattr(getattr(self.ours, name).lora, vector)[...] = jnp.asarray(value)
        random = np.random.default_rng(0)
        self.x = jnp.asarray(random.normal(size=(3, 5, 6)), jnp.float32)
        self.target = random.normal(size=(3, 5, 4)).astype(np.float32)

    def torch_vectors(self):
        return {
            f"{name}/lora/lambda_{side}": getattr(layer, f"vera_lambda_{side}")["default"]
            for name, layer in self.theirs.items()
            for side in "bd"
        }

    def vectors(self, gradients=False):
        every = self.torch_vectors().items()
        return {path: numpy_of(v.grad if gradients else v) for path, v in every}

    def values(self):
        return lora_jax.split(self.ours, self.method.labels(self.ours))[1]


LAYERS = ("first", "second")


def numpy_of(tensor):
    return tensor.detach().numpy().copy()


@pytest.fixture(scope="module", params=[False, True], ids=["Linear", "Conv1D"])
def pair(request):
    return Pair(request.param)


def test_vectors_start_as_pefts(pair):
    ours, theirs = pair.initial
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value)


def test_output_with_our_matrices_in_peft_is_pefts(pair):
    """Peft slices the largest A and B, so ours of both layers are slices of these."""
    theirs = numpy_of(pair.model(torch.tensor(np.asarray(pair.x))))
    np.testing.assert_allclose(pair.ours(pair.x), theirs, **FLOAT32)
    assert np.abs(theirs - lora_jax.strip(pair.ours)(pair.x)).max() > 0.1


def test_merged_weights_are_pefts(pair):
    merged = lora_jax.merge(pair.ours)
    for name, layer in pair.theirs.items():
        delta = layer.get_delta_weight("default")
        theirs = pair.kernel(numpy_of(layer.base_layer.weight + delta))
        np.testing.assert_allclose(getattr(merged, name).kernel[...], theirs, **FLOAT32)
    np.testing.assert_allclose(merged(pair.x), pair.ours(pair.x), **FLOAT32)


def test_gradients_and_five_steps_of_adamw_are_pefts(pair):
    labels = pair.method.labels(pair.ours)
    structure, trainable, frozen = lora_jax.split(pair.ours, labels)
    tx = lora_jax.optimizer(
        {path: labels[path] for path in trainable}, optax.adamw(1e-2, weight_decay=0.1)
    )

    @jax.jit
    @jax.value_and_grad
    def loss(trainable):
        outputs = lora_jax.join(structure, trainable, frozen)(pair.x)
        return jnp.mean((outputs - pair.target) ** 2)

    state = tx.init(trainable)
    kept = {path: v.detach().clone() for path, v in pair.torch_vectors().items()}
    adamw = torch.optim.AdamW(pair.torch_vectors().values(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        adamw.zero_grad()
        theirs = (
            (pair.model(torch.tensor(np.asarray(pair.x))) - torch.tensor(pair.target)) ** 2
        ).mean()
        theirs.backward()
        value, gradients = loss(trainable)
        assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
        for path, gradient in pair.vectors(gradients=True).items():
            np.testing.assert_allclose(gradients[path], gradient, rtol=1e-4, atol=1e-6)
        adamw.step()
        updates, state = tx.update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        for path, value in pair.vectors().items():  # Adam divides small gradients by their size
            np.testing.assert_allclose(trainable[path], value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for path, vector in pair.torch_vectors().items():
            vector.copy_(kept[path])


# --- The shared matrices ----------------------------------------------------------------------------


def test_matrices_are_as_large_as_pefts_and_uniform():
    """65536 values each: the standard deviation is known to 0.2%, of peft's and of ours."""
    from peft.tuners.vera.model import _kaiming_init

    generator = torch.Generator().manual_seed(0)
    theirs = [numpy_of(_kaiming_init(shape, generator)) for shape in ((128, 512), (512, 128))]
    for ours, peft_value in zip(shared_matrices(0, 512, 512, 128, 512), theirs, strict=True):
        assert ours.shape == peft_value.T.shape
        np.testing.assert_allclose(np.std(ours), np.std(peft_value), rtol=0.01)
        np.testing.assert_allclose(np.abs(ours).max(), np.abs(peft_value).max(), rtol=1e-3)
        assert abs(np.mean(ours)) < 5 * np.std(ours) / 256
    a, b = shared_matrices(0, 512, 512, 128, 512)
    other, _ = shared_matrices(1, 512, 512, 128, 512)
    assert abs(np.corrcoef(np.ravel(a), np.ravel(other))[0, 1]) < 0.03
    assert abs(np.corrcoef(np.ravel(a), np.ravel(b.T))[0, 1]) < 0.03


def test_smaller_matrices_are_leading_slices_of_larger_ones():
    a, b = shared_matrices(3, 11, 7, 5, fan_in=11)
    larger_a, larger_b = shared_matrices(3, 40, 30, 5, fan_in=11)
    np.testing.assert_array_equal(a, larger_a[:11])
    np.testing.assert_array_equal(b, larger_b[:, :7])
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):  # whatever JAX draws by
        np.testing.assert_array_equal(a, shared_matrices(3, 11, 7, 5, fan_in=11)[0])


# --- Every layer kind against the formula -----------------------------------------------------------


def by_formula(layer):
    """W + A diag(d) B diag(b) in float64, one map after another, in the weight's shape."""
    roles, update = layer.roles(), layer.lora
    w = np.asarray(layer.weight_values(), np.float64).reshape(layer.view())
    order = roles.batch + roles.inputs + roles.outputs
    batch, inputs, outputs = roles.sizes(layer.view())
    maps = np.transpose(w, order).reshape(-1, math.prod(inputs), math.prod(outputs))
    count, rank = len(maps), update.lambda_d.shape[-1]
    shapes = {
        "shared_a": (-1, rank),
        "lambda_d": (rank,),
        "shared_b": (rank, -1),
        "lambda_b": (-1,),
    }
    values = [
        np.asarray(getattr(update, name)[...], np.float64).reshape(count, *shape)
        for name, shape in shapes.items()
    ]
    totals = [
        w + a @ np.diag(d) @ b @ np.diag(e) for w, a, d, b, e in zip(maps, *values, strict=True)
    ]
    ordered = np.stack(totals).reshape(batch + inputs + outputs)
    return np.transpose(ordered, np.argsort(order)).reshape(layer.weight_shape())


KINDS = (
    "linear", "linear, vector", "general, from heads", "general, axis 1 and last", "general, batch axis",
    "einsum, heads", "einsum, experts", "einsum, transposed", "einsum, output permuted", "embed",
    "conv 1D", "conv 2D, groups, stride, dilated", "transposed 1D, stored transposed",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_merged_weight_is_the_formulas_and_merged_equals_unmerged(name):
    """The merged layer is of the pre-trained class, so it is an independent reference of the output."""
    make, shape, _ = CASES[name]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    table = isinstance(base, nnx.Embed)
    x = random_input(shape, integers_below=base.num_embeddings if table else None)
    method = lora_jax.vera("", rank=5)
    adapted = method.insert(base, jax.random.key(0))
    np.testing.assert_array_equal(adapted(x), base(x))
    randomise(adapted.lora, 1)
    merged = lora_jax.merge(adapted)
    weight = merged.embedding if table else merged.kernel
    np.testing.assert_allclose(weight[...], by_formula(adapted), rtol=2e-5, atol=5e-6)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(adapted(x) - base(x))).max() > 0.05
    batch, inputs, outputs = adapted.roles().sizes(adapted.view())
    trained = math.prod(batch) * (5 + math.prod(outputs))
    assert method.summary(adapted).counts()["trainable"] == trained
    bound = math.sqrt(6 / (1 if table else math.prod(inputs)))
    largest = np.abs(adapted.lora.shared_a[...]).max()
    assert bound / 4 < largest <= bound


def test_tied_output_layer_sees_the_adapted_table():
    adapted = adapted_copy(embed(11, 5)(nnx.Rngs(0)), VeRASettings(rank=4))
    randomise(adapted, 1)
    query = random_input((3, 5))
    np.testing.assert_allclose(
        adapted.attend(query), lora_jax.merge(adapted).attend(query), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["linear", "einsum, experts", "embed"])
def test_scanned_stack_equals_a_loop_over_single_layers_with_equal_matrices(name):
    make, shape, _ = CASES[name]
    stack = nnx.split_rngs(splits=3)(nnx.vmap(make))(nnx.Rngs(0))
    randomise(stack, 0)
    stack = adapted_copy(stack, VeRASettings(rank=6))
    single = adapted_copy(make(nnx.Rngs(0)), VeRASettings(rank=6))
    for side in ("shared_a", "shared_b"):
        every, one = getattr(stack.lora, side)[...], getattr(single.lora, side)[...]
        np.testing.assert_array_equal(every, np.broadcast_to(one, (3, *one.shape)))
    randomise(stack.lora, 2)
    graphdef, state = nnx.split(stack)
    one_graphdef = nnx.graphdef(single)
    x = random_input(shape, 10 if name == "embed" else None)
    step = lambda carry, layer: (carry, nnx.merge(graphdef, layer)(x))  # noqa: E731
    _, scanned = jax.lax.scan(step, None, state)
    for i in range(3):
        layer = nnx.merge(one_graphdef, jax.tree.map(lambda value, i=i: value[i], state))
        np.testing.assert_allclose(scanned[i], layer(x), rtol=2e-5, atol=2e-5)
    merged = lora_jax.merge(stack)
    weight = merged.embedding if name == "embed" else merged.kernel
    np.testing.assert_allclose(weight[1], by_formula(layer_at(stack, one_graphdef, 1)), **FLOAT32)


def layer_at(stack, graphdef, index):
    return nnx.merge(graphdef, jax.tree.map(lambda value: value[index], nnx.state(stack)))


def test_dropout_is_on_the_branch_only():
    layer = adapted_copy(linear(6, 5)(nnx.Rngs(0)), VeRASettings(rank=4, dropout=0.5))
    randomise(layer, 1)
    x = random_input((64, 6))
    undropped = layer(x)
    layer.lora.dropout_key = DropoutKey(jax.random.key(1))
    dropped = layer.lora.drop(x)
    assert 0.3 < np.mean(np.asarray(dropped) == 0) < 0.7
    update = layer.lora
    branch = ((dropped @ update.shared_a[...]) * update.lambda_d[...]) @ update.shared_b[...]
    expected = x @ layer.kernel[...] + layer.bias[...] + branch * update.lambda_b[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    layer.eval()
    np.testing.assert_array_equal(layer(x), undropped)
