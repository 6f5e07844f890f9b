"""IA3 equals peft where peft has the layer; on every layer kind merged and unmerged are one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from bert_like import WIDTH, blocks, compare_training
from flax import nnx

import lora_jax
from lora_jax.errors import InputError
from tests.low_rank.layer_cases import CASES, random_input, randomise
from tests.low_rank.torch_layers import Holder

torch.set_num_threads(1)
KEY = jax.random.key(0)
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of at most some hundred products in another order


def transposed(array):
    return array.T


def _conv(dims, groups=1):
    kind = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
    settings = {"padding": 1}
    spatial = (*range(2, 2 + dims), 1, 0)
    return {
        "torch": lambda: kind(4, 6, 3, groups=groups, **settings),
        "ours": lambda: nnx.Conv(
            4, 6, (3,) * dims, feature_group_count=groups, rngs=nnx.Rngs(0), **settings
        ),
        "x": (2, *(4,) * dims, 4),
        "to_torch": lambda x: np.moveaxis(x, -1, 1),
        "from_torch": lambda y: y.movedim(1, -1),
        "weight": lambda w: w.transpose(spatial),
    }


_LINEAR = {
    "torch": lambda: torch.nn.Linear(6, 5), "ours": lambda: nnx.Linear(6, 5, rngs=nnx.Rngs(0)),
    "x": (4, 7, 6), "to_torch": lambda x: x, "from_torch": lambda y: y, "weight": transposed,
}  # fmt: skip
PEFT_CASES = {
    "linear": _LINEAR,
    "linear without bias": _LINEAR | {
        "torch": lambda: torch.nn.Linear(6, 5, bias=False),
        "ours": lambda: nnx.Linear(6, 5, use_bias=False, rngs=nnx.Rngs(0)),
    },
    "GPT-2's Conv1D": _LINEAR | {
        "torch": lambda: transformers.pytorch_utils.Conv1D(5, 6), "weight": lambda w: w,
    },
    "conv 2D": _conv(2),
    "conv 2D, groups": _conv(2, groups=2),
    "conv 3D": _conv(3),
}  # fmt: skip


@pytest.mark.parametrize("of_inputs", [False, True], ids=["outputs", "inputs"])
@pytest.mark.parametrize("name", PEFT_CASES)
def test_output_training_and_merged_layer_are_pefts(name, of_inputs):
    case, random = PEFT_CASES[name], np.random.default_rng(0)
    torch.manual_seed(0)
    config = peft.IA3Config(
        target_modules=["layer"],
        feedforward_modules=["layer"] if of_inputs else [],
        fan_in_fan_out=name.startswith("GPT"),
    )
    model = peft.get_peft_model(Holder(case["torch"]()), config)
    layer, ours = model.base_model.model.layer, case["ours"]()
    base = layer.base_layer
    ours.kernel[...] = jnp.asarray(case["weight"](base.weight.detach().numpy().copy()))
    if ours.bias is not None:
        with torch.no_grad():
            base.bias.copy_(torch.randn_like(base.bias))
        ours.bias[...] = jnp.asarray(base.bias.detach().numpy().copy())
    method = lora_jax.ia3("", "" if of_inputs else None)
    adapted = method.insert(ours, KEY)
    vector = layer.ia3_l["default"]
    assert adapted.lora.vector.size == vector.numel()
    x = jnp.asarray(random.normal(size=case["x"]), jnp.float32)
    np.testing.assert_array_equal(adapted(x), ours(x))
    with torch.no_grad():
        vector.copy_(torch.randn_like(vector))
    adapted.lora.vector[...] = jnp.asarray(
        vector.detach().reshape(adapted.lora.vector.shape).numpy()
    )
    there = torch.tensor(np.ascontiguousarray(case["to_torch"](np.asarray(x))))
    np.testing.assert_allclose(adapted(x), case["from_torch"](model(there)).detach(), **FLOAT32)
    trained = compare_training(
        lambda: case["from_torch"](model(there)), {"lora/vector": vector}, method, adapted,
        lambda m: m(x), random.normal(size=ours(x).shape), 2e-4,
    )  # fmt: skip
    merged = lora_jax.merge(trained)
    layer.merge()
    np.testing.assert_allclose(
        merged.kernel[...], case["weight"](base.weight.detach().numpy()), **FLOAT32
    )
    if ours.bias is not None:
        np.testing.assert_allclose(merged.bias[...], base.bias.detach(), **FLOAT32)
    np.testing.assert_allclose(merged(x), trained(x), rtol=1e-4, atol=1e-5)


def test_a_block_like_berts_trains_and_merges_as_in_peft():
    theirs, ours = blocks()
    targets = ["key", "value", "down"]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=["down"])
    model = peft.get_peft_model(theirs, config)
    method = lora_jax.ia3(targets, "down")
    adapted = method.insert(ours, KEY)
    inside = model.base_model.model
    trained = {f"{name}/lora/vector": getattr(inside, name).ia3_l["default"] for name in targets}
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert method.summary(adapted).counts()["trainable"] == count == 2 * WIDTH + 12
    random = np.random.default_rng(0)
    x, target = random.normal(size=(2, 3, 5, WIDTH)).astype(np.float32)
    result = compare_training(
        lambda: model(torch.tensor(x)), trained, method, adapted, lambda m: m(jnp.asarray(x)),
        target, 1e-3,
    )  # fmt: skip
    merged, whole = lora_jax.merge(result), model.merge_and_unload()
    for name in ("query", *targets):
        layer, other = getattr(merged, name), getattr(whole, name)
        np.testing.assert_allclose(layer.kernel[...].T, other.weight.detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.bias[...], other.bias.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        merged(jnp.asarray(x)), whole(torch.tensor(x)).detach(), rtol=1e-3, atol=1e-4
    )


# --- Every layer kind: the merged layer is of the pre-trained class, and so an independent reference ---

_OWN = {
    "einsum, bias in the result's order": (
        lambda rngs: nnx.Einsum("btd,dhk->bkth", (4, 2, 5), (5, 2), rngs=rngs), (2, 6, 4), 2,
    ),
    "einsum, heads last, bias": (
        lambda rngs: nnx.Einsum("btd,dhk->btkh", (4, 2, 5), (5, 2), rngs=rngs), (2, 6, 4), 2,
    ),
}  # fmt: skip
ALL_CASES = {**CASES, **_OWN}
# Inputs of fewer: their placing is in the layers' kinds, and strides or padding change nothing of it.
_CHOSEN = (*_OWN, "linear, sequence", "general, from heads", "general, axis 1 and last", "general, axis 0",
           "general, last and axis 1", "general, batch axis, inner", "general, two batch axes",
           "einsum, experts of tokens", "einsum, expert axis last", "einsum, contracts two, permuted",
           "einsum, sums an input axis", "einsum, ellipsis and experts", "einsum, ellipsis between",
           "einsum, kinds of batch apart", "embed", "conv 1D, causal, dilated", "conv 2D, circular, stride",
           "conv 2D, groups, stride, dilated", "conv 2D, no batch, groups", "conv 2D, two batch axes",
           "transposed 1D, stored transposed", "transposed 2D, circular")  # fmt: skip
_RUN = [(name, False) for name in ALL_CASES] + [(name, True) for name in _CHOSEN]


@pytest.mark.parametrize(("name", "of_inputs"), _RUN)
def test_merged_equals_unmerged(name, of_inputs):
    make, shape, _ = ALL_CASES[name]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    table = isinstance(base, nnx.Embed)
    if table and of_inputs:
        with pytest.raises(InputError, match="looks up rows by their numbers.*leave it out"):
            lora_jax.ia3("", "").insert(base, KEY)
        return
    x = random_input(shape, integers_below=base.num_embeddings if table else None)
    adapted = lora_jax.ia3("", "" if of_inputs else None).insert(base, KEY)
    np.testing.assert_array_equal(adapted(x), base(x))
    randomise(adapted.lora, 1)
    merged = lora_jax.merge(adapted)
    np.testing.assert_allclose(adapted(x), merged(x), rtol=1e-3, atol=1e-3)
    assert np.abs(np.asarray(adapted(x) - base(x))).max() > 0.05
    same_bias = of_inputs or getattr(base, "bias", None) is None
    if not same_bias:
        assert not np.allclose(merged.bias[...], base.bias[...])


def test_tied_output_layer_sees_the_scaled_table():
    base = nnx.Embed(11, 5, rngs=nnx.Rngs(0))
    adapted = lora_jax.ia3("").insert(base, KEY)
    randomise(adapted.lora, 1)
    query = random_input((3, 5))
    expected = np.asarray(query) @ np.asarray(base.embedding * adapted.lora.vector).T
    np.testing.assert_allclose(adapted.attend(query), expected, rtol=1e-4, atol=1e-5)


def test_parts_of_a_fused_projection():
    base = nnx.Linear(6, 9, rngs=nnx.Rngs(0))
    base.bias[...] = jnp.arange(9.0)
    arguments = {"parts": ("k", "v"), "fused": ("q", "k", "v"), "fused_sizes": (2, 3, 4)}
    method = lora_jax.ia3("", **arguments)
    adapted = method.insert(base, KEY)
    randomise(adapted.lora, 1)
    whole = np.concatenate([np.ones(2), adapted.lora.k.vector[...], adapted.lora.v.vector[...]])
    x, merged = random_input((4, 6)), lora_jax.merge(adapted)
    np.testing.assert_allclose(adapted(x), base(x) * whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged.kernel[...], base.kernel * whole, rtol=1e-6)
    np.testing.assert_allclose(merged.bias[...], base.bias * whole, rtol=1e-6)
    assert method.summary(adapted).layers[0].how == "a factor for every output of k,v of q,k,v"
    with pytest.raises(InputError, match="share their inputs"):
        lora_jax.ia3("", "", **arguments).insert(base, KEY)


class Stacked(nnx.Module):
    """Three layers in one scan."""

    def __init__(self, rngs):
        make = lambda r: nnx.Linear(5, 5, rngs=r)  # noqa: E731
        self.block = nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)

    def __call__(self, x):
        graphdef, state = nnx.split(self.block)
        step = lambda x, layer: (jnp.tanh(nnx.merge(graphdef, layer)(x)), None)  # noqa: E731
        return jax.lax.scan(step, x, state)[0]


@pytest.mark.parametrize("of_inputs", [False, True], ids=["outputs", "inputs"])
def test_stacked_layers_are_separate_ones(of_inputs):
    base = Stacked(nnx.Rngs(0))
    randomise(base, 0)
    adapted = lora_jax.ia3("block", "block" if of_inputs else None).insert(base, KEY)
    randomise(adapted.block.lora, 1)
    assert adapted.block.lora.vector.shape == (3, 5)
    x = random_input((4, 5))
    y = np.asarray(x, np.float64)
    for w, b, v in zip(
        base.block.kernel[...], base.block.bias[...], adapted.block.lora.vector[...], strict=True
    ):
        y = np.tanh((y * v) @ w + b if of_inputs else (y @ w + b) * v)
    np.testing.assert_allclose(adapted(x), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lora_jax.merge(adapted)(x), y, rtol=1e-4, atol=1e-5)
