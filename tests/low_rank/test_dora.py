"""DoRA equals peft where peft has the layer, and the paper's formula in float64 on every layer kind."""

from __future__ import annotations

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
from lora_jax.low_rank import layers
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.updates import DropoutKey
from lora_jax.low_rank.weights import WeightView
from tests.low_rank.layer_cases import CASES, random_input, randomise
from tests.low_rank.torch_layers import Holder

torch.set_num_threads(1)
RANK, ALPHA = 3, 6.0
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of at most some hundred products in another order


def _conv(dims):
    def torch_layer():
        kind = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
        return kind(4, 5, 3, padding=1, stride=2)

    def ours():
        return nnx.Conv(4, 5, (3,) * dims, padding=1, strides=2, rngs=nnx.Rngs(0))

    spatial = (*range(2, 2 + dims), 1, 0)
    back = (dims + 1, dims, *range(dims))
    return {
        "torch": torch_layer,
        "ours": ours,
        "x": lambda random: random.normal(size=(2, *(6,) * dims, 4)),
        "to_torch_x": lambda x: np.moveaxis(x, -1, 1),
        "from_torch_y": lambda y: np.moveaxis(y, 1, -1),
        "weight": lambda w: w.transpose(spatial),
        "weight_to_torch": lambda w: w.transpose(back),
        "a": lambda a: a.transpose(spatial)[None],
        "b": lambda b: b.reshape(5, RANK).T[None],
        "magnitude": lambda m: m.reshape(1, 5),
    }


def same(array):
    return array


def transposed(array):
    return array.T


_LINEAR = {
    "torch": lambda: torch.nn.Linear(6, 5),
    "ours": lambda: nnx.Linear(6, 5, rngs=nnx.Rngs(0)),
    "x": lambda random: random.normal(size=(4, 7, 6)),
    "to_torch_x": same, "from_torch_y": same, "weight": transposed, "weight_to_torch": transposed,
    "a": transposed, "b": transposed, "magnitude": same,
}  # fmt: skip
PEFT_CASES = {
    "linear": _LINEAR,
    "linear without bias": _LINEAR | {
        "torch": lambda: torch.nn.Linear(6, 5, bias=False),
        "ours": lambda: nnx.Linear(6, 5, use_bias=False, rngs=nnx.Rngs(0)),
    },
    "GPT-2's Conv1D": _LINEAR | {
        "torch": lambda: transformers.pytorch_utils.Conv1D(5, 6),
        "weight": same, "weight_to_torch": same,
    },
    "embedding": _LINEAR | {
        "torch": lambda: torch.nn.Embedding(11, 5),
        "ours": lambda: nnx.Embed(11, 5, rngs=nnx.Rngs(0)),
        "x": lambda random: random.integers(0, 11, (4, 7)),
        "weight": same, "weight_to_torch": same,
    },
    "conv 1D": _conv(1),
    "conv 2D": _conv(2),
    "conv 3D": _conv(3),
}  # fmt: skip


class Pair:
    """A layer with DoRA in peft and here: equal weights, random factors and magnitudes."""

    def __init__(self, case):
        self.case = case
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        config = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["layer"], use_dora=True
        )
        self.model = peft.get_peft_model(Holder(case["torch"]()), config)
        self.layer = self.model.base_model.model.layer
        ours = case["ours"]()
        weight = ours.embedding if isinstance(ours, nnx.Embed) else ours.kernel
        weight[...] = jnp.asarray(case["weight"](self.layer.base_layer.weight.detach().numpy()))
        bias = getattr(self.layer.base_layer, "bias", None)
        if bias is not None:
            with torch.no_grad():
                bias.copy_(torch.randn_like(bias))
            ours.bias[...] = jnp.asarray(bias.detach().numpy())
        self.method = lora_jax.lora("", rank=RANK, alpha=ALPHA, magnitude=True)
        self.ours = self.method.insert(ours, jax.random.key(0))
        self.initial_magnitude = self.magnitude()
        with torch.no_grad():
            for parameter in self.torch_trainable().values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, value in self.theirs().items():
            getattr(self.ours.lora, name)[...] = jnp.asarray(value)
        self.x = case["x"](random)
        self.target = random.normal(size=self.run_ours(self.ours).shape)

    def torch_trainable(self):
        embedding = bool(len(self.layer.lora_embedding_A))
        pair = [getattr(self.layer, f"lora_{'embedding_' * embedding}{side}") for side in "AB"]
        a, b = (factor["default"] for factor in pair)
        magnitude = self.layer.lora_magnitude_vector["default"].weight
        return {
            "a": a if embedding else a.weight,
            "b": b if embedding else b.weight,
            "magnitude": magnitude,
        }

    def theirs(self, gradients=False):
        """peft's factors and magnitude (or their gradients) in our layout."""
        return {
            name: self.case[name]((p.grad if gradients else p.detach()).numpy().copy())
            for name, p in self.torch_trainable().items()
        }

    def magnitude(self):
        return np.asarray(self.ours.lora.magnitude[...]), self.theirs()["magnitude"]

    def run_theirs(self):
        x = torch.tensor(self.case["to_torch_x"](self.x))
        return self.model(x.float() if x.is_floating_point() else x)

    def run_ours(self, model):
        return model(jnp.asarray(self.x))

    def loss_theirs(self):
        target = np.asarray(self.target, np.float32)
        if target.ndim > 3 or "conv" in str(type(self.layer.base_layer)).lower():
            target = self.case["to_torch_x"](target) if target.shape[-1] == 5 else target
        if isinstance(self.layer.base_layer, transformers.pytorch_utils.Conv1D):
            target = np.asarray(self.target, np.float32)
        return ((self.run_theirs() - torch.tensor(target)) ** 2).mean()


@pytest.fixture(scope="module", params=PEFT_CASES)
def pair(request):
    return Pair(PEFT_CASES[request.param])


def test_magnitude_starts_as_the_norms_that_peft_takes(pair):
    ours, theirs = pair.initial_magnitude
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_output_is_pefts(pair):
    theirs = pair.case["from_torch_y"](pair.run_theirs().detach().numpy())
    np.testing.assert_allclose(pair.run_ours(pair.ours), theirs, **FLOAT32)


def test_merged_weight_is_pefts_and_gives_the_same_output(pair):
    merged = lora_jax.merge(pair.ours)
    weight = merged.embedding if isinstance(merged, nnx.Embed) else merged.kernel
    state = pair.layer.base_layer.weight.detach().clone()
    pair.layer.merge()
    theirs = pair.case["weight"](pair.layer.base_layer.weight.detach().numpy().copy())
    pair.layer.unmerge()
    with torch.no_grad():
        pair.layer.base_layer.weight.copy_(state)
    np.testing.assert_allclose(weight[...], theirs, **FLOAT32)
    np.testing.assert_allclose(pair.run_ours(merged), pair.run_ours(pair.ours), **FLOAT32)


def test_gradients_and_five_steps_of_adamw_are_pefts(pair):
    labels = pair.method.labels(pair.ours)
    structure, trainable, frozen = lora_jax.split(pair.ours, labels)
    assert set(trainable) == {"lora/a", "lora/b", "lora/magnitude"}
    tx = lora_jax.optimizer(
        {path: labels[path] for path in trainable}, optax.adamw(1e-2, weight_decay=0.1)
    )

    @jax.value_and_grad
    def loss(trainable):
        outputs = pair.run_ours(lora_jax.join(structure, trainable, frozen))
        return jnp.mean((outputs - jnp.asarray(pair.target, jnp.float32)) ** 2)

    state = tx.init(trainable)
    kept = {name: p.detach().clone() for name, p in pair.torch_trainable().items()}
    adamw = torch.optim.AdamW(pair.torch_trainable().values(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        adamw.zero_grad()
        theirs = pair.loss_theirs()
        theirs.backward()
        value, gradients = jax.jit(loss)(trainable)
        assert float(value) == pytest.approx(float(theirs), rel=1e-5)
        for name, gradient in pair.theirs(gradients=True).items():
            np.testing.assert_allclose(gradients[f"lora/{name}"], gradient, rtol=1e-4, atol=1e-6)
        adamw.step()
        updates, state = tx.update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        for name, value in pair.theirs().items():  # Adam divides small gradients by their own size
            np.testing.assert_allclose(trainable[f"lora/{name}"], value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for name, parameter in pair.torch_trainable().items():
            parameter.copy_(kept[name])


# --- Every layer kind against the formula ---------------------------------------------------------


def randomised(model, seed=1):
    """Random factors, magnitudes and biases."""
    random = np.random.default_rng(seed)
    for pair in layers.factor_pairs(model).values():
        for name in ("a", "b", "magnitude"):
            variable = getattr(pair, name)
            variable[...] = jnp.asarray(random.normal(size=variable.shape), jnp.float32)
    return model


def by_formula(layer):
    """m (W + s A B) / ||W + s A B|| in float64, one map after another, in the weight's shape."""
    roles, pair = layer.roles(), layer.lora
    w = np.asarray(layer.weight_values(), np.float64).reshape(layer.view())
    order = roles.batch + roles.inputs + roles.outputs
    batch, inputs, outputs = roles.sizes(layer.view())
    maps = np.transpose(w, order).reshape(-1, int(np.prod(inputs)), int(np.prod(outputs)))
    rank = pair.a.shape[-1]
    a = np.asarray(pair.a[...], np.float64).reshape(len(maps), -1, rank)
    b = np.asarray(pair.b[...], np.float64).reshape(len(maps), rank, -1)
    m = np.asarray(pair.magnitude[...], np.float64).reshape(len(maps), -1)
    result = []
    for w_map, a_map, b_map, m_map in zip(maps, a, b, m, strict=True):
        total = w_map + pair.scale * a_map @ b_map
        result.append(m_map * total / np.sqrt((total**2).sum(axis=0)))
    ordered = np.stack(result).reshape(batch + inputs + outputs)
    back = np.argsort(order)
    return np.transpose(ordered, back).reshape(layer.weight_shape())


@pytest.mark.parametrize("name", CASES)
def test_merged_weight_is_the_formulas_and_merged_equals_unmerged(name):
    """The merged layer is of the pre-trained class, so it is an independent reference of the output."""
    make, shape, rank = CASES[name]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    table = isinstance(base, nnx.Embed)
    x = random_input(shape, integers_below=base.num_embeddings if table else None)
    method = lora_jax.lora("", rank=rank, alpha=2.0 * rank, magnitude=True)
    adapted = method.insert(base, jax.random.key(0))
    np.testing.assert_allclose(adapted(x), base(x), rtol=1e-4, atol=1e-4)
    randomised(adapted)
    merged = lora_jax.merge(adapted)
    weight = merged.embedding if table else merged.kernel
    np.testing.assert_allclose(weight[...], by_formula(adapted), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(adapted(x) - base(x))).max() > 0.05
    batch, _, outputs = adapted.roles().sizes(adapted.view())
    pair = adapted.lora
    assert pair.magnitude.shape == batch + outputs
    assert method.summary(adapted).counts()["trainable"] == sum(
        leaf.size for leaf in (pair.a, pair.b, pair.magnitude)
    )


def test_tied_output_layer_sees_the_adapted_table():
    adapted = lora_jax.lora("", rank=2, magnitude=True).insert(
        nnx.Embed(11, 5, rngs=nnx.Rngs(0)), jax.random.key(0)
    )
    randomised(adapted)
    query = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    np.testing.assert_allclose(
        adapted.attend(query), lora_jax.merge(adapted).attend(query), rtol=2e-4, atol=5e-5
    )


def test_parts_of_a_fused_projection_have_magnitudes_of_their_own():
    base = nnx.Linear(6, 9, rngs=nnx.Rngs(0))
    base.bias[...] = jnp.arange(9.0)
    method = lora_jax.lora(
        "", rank=2, magnitude=True, parts=("q", "v"), fused=("q", "k", "v"), fused_sizes=(2, 3, 4)
    )
    adapted = randomised(method.insert(base, jax.random.key(0)))
    assert {name: pair.magnitude.shape for name, pair in adapted.lora.members().items()} == {
        "q": (2,), "v": (4,),
    }  # fmt: skip
    merged = lora_jax.merge(adapted)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=2e-4, atol=5e-5)
    np.testing.assert_array_equal(merged.kernel[:, 2:5], base.kernel[:, 2:5])
    for name, start, stop in (("q", 0, 2), ("v", 5, 9)):
        norms = np.linalg.norm(merged.kernel[:, start:stop], axis=0)
        magnitude = np.abs(getattr(adapted.lora, name).magnitude[...])
        np.testing.assert_allclose(norms, magnitude, rtol=1e-4)


class Stacked(nnx.Module):
    """Three layers in one scan."""

    def __init__(self, rngs):
        make = lambda r: nnx.Linear(5, 5, rngs=r)  # noqa: E731
        self.block = nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)

    def __call__(self, x):
        graphdef, state = nnx.split(self.block)
        step = lambda x, layer: (jnp.tanh(nnx.merge(graphdef, layer)(x)), None)  # noqa: E731
        return jax.lax.scan(step, x, state)[0]


def test_stacked_layers_each_have_their_own_norms():
    base = Stacked(nnx.Rngs(0))
    adapted = lora_jax.lora("block", rank=2, magnitude=True).insert(base, jax.random.key(0))
    kernel = np.asarray(base.block.kernel[...], np.float64)
    np.testing.assert_allclose(
        adapted.block.lora.magnitude[...], np.linalg.norm(kernel, axis=1), rtol=1e-6
    )
    randomised(adapted)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    np.testing.assert_allclose(adapted(x), lora_jax.merge(adapted)(x), rtol=2e-4, atol=5e-5)


def test_dropout_is_on_what_differs_from_the_base_layer_as_in_peft():
    layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(5.0)
    base = nnx.clone(layer)
    layers.adapt(
        layer, LoRASettings(rank=2, alpha=3.0, dropout=0.5, magnitude=True), jax.random.key(0)
    )
    randomised(layer)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 6)), jnp.float32)
    layer.lora.dropout_key = DropoutKey(jax.random.key(1))
    dropped = layer.lora.drop(x)
    assert 0.3 < np.mean(np.asarray(dropped) == 0) < 0.7
    ratio = layer.lora.ratio(WeightView(layer))
    low = layer.lora.scale * dropped @ layer.lora.a[...] @ layer.lora.b[...]
    expected = base(x) + (ratio - 1) * (dropped @ base.kernel[...]) + ratio * low
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_an_output_without_weights_stays_zero_and_finite():
    base = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    base.kernel[...] = base.kernel[...].at[:, 1].set(0)
    adapted = lora_jax.lora("", rank=1, magnitude=True).insert(base, jax.random.key(0))
    x = jnp.ones((2, 4))

    def loss(model):
        return jnp.sum(model(x) ** 2)

    gradients = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(adapted)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(adapted(x), base(x), **FLOAT32)


def test_the_norm_is_a_constant_for_the_gradient():
    """Section 4.3 of the DoRA paper: the gradient of B is that of a fixed norm."""
    base = nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    adapted = randomised(lora_jax.lora("", rank=2, magnitude=True).insert(base, jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    pair, norms = adapted.lora, adapted.lora.norms(WeightView(adapted))

    def fixed(b):
        total = base.kernel[...] + pair.scale * pair.a[...] @ b
        return jnp.sum((x @ (pair.magnitude[...] / norms * total)) ** 2)

    gradients = nnx.grad(
        lambda model: jnp.sum(model(x) ** 2), argnums=nnx.DiffState(0, nnx.LoRAParam)
    )(adapted)
    np.testing.assert_allclose(
        gradients["lora"]["b"][...], jax.grad(fixed)(pair.b[...]), rtol=1e-4, atol=1e-4
    )


def test_saved_and_loaded_in_a_folder_and_named_in_the_summary(tmp_path):
    base = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    method = lora_jax.lora("", rank=2, magnitude=True)
    adapted = randomised(method.insert(base, jax.random.key(0)))
    labels = method.labels(adapted)
    _, trainable, _ = lora_jax.split(adapted, labels)
    from lora_jax.adapters import fingerprint

    lora_jax.save_adapter(
        tmp_path, trainable, labels, method, fingerprint(lora_jax.parameters(base))
    )
    loaded = lora_jax.load_adapter(tmp_path)
    assert loaded.method == method and set(loaded.values) == set(trainable)
    x = jnp.ones((2, 6))
    np.testing.assert_array_equal(lora_jax.attach(base, loaded)(x), adapted(x))
    assert "rank 2, alpha 2, scale 1 (alpha/r), dropout 0, magnitude" in str(
        method.summary(adapted)
    )
    assert method.name == "dora" and (method + lora_jax.bitfit()).name == "dora+bitfit"
    assert lora_jax.lora("", rank=2).name == "lora"
    assert type(lora_jax.strip(adapted)) is nnx.Linear


def test_bfloat16_base_computes_in_its_type():
    base = nnx.Linear(6, 5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    adapted = lora_jax.lora("", rank=2, magnitude=True).insert(base, jax.random.key(0))
    assert adapted.lora.magnitude.dtype == jnp.float32
    x = jnp.ones((3, 6), jnp.bfloat16)
    assert adapted(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(adapted(x), base(x))


def test_shapes_of_an_abstract_model_captured_or_given():
    base = nnx.eval_shape(lambda: nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    method = lora_jax.lora("", rank=2, magnitude=True)
    insert = lambda model: method.insert(model, jax.random.key(0))  # noqa: E731
    for adapted in (nnx.eval_shape(insert, base), nnx.eval_shape(lambda: insert(base))):
        assert adapted.lora.magnitude.shape == (5,) and adapted.lora.magnitude.dtype == jnp.float32
