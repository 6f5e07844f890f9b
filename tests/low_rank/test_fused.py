"""Parts of fused projections, each with factors of its own, as loralib's MergedLinear."""

import types

import numpy as np
import pytest
import torch
from flax import nnx

import lora_jax
from lora_jax.low_rank import layers
from lora_jax.low_rank.settings import LoRASettings
from tests.low_rank.layer_cases import (
    FLOAT32,
    adapted_copy,
    conv,
    einsum,
    embed,
    exact,
    general,
    key,
    linear,
    random_input,
    randomise,
)
from tests.low_rank.torch_layers import assign, numpy_of, randomised_torch, torch_of

loralib = pytest.importorskip("loralib")
peft = pytest.importorskip("peft")

torch.set_num_threads(1)


HEADS, SIZE, RANK = 2, 3, 2
D = HEADS * SIZE
QV = {"fused": ("q", "k", "v"), "parts": ("q", "v")}
# name: (constructor, the shape of one part's outputs, how to take part i of a result)
FUSED = {
    "linear": (linear(D, 3 * D), (D,), lambda y, i: y[..., i * D : (i + 1) * D]),
    "general": (general(D, (3, HEADS, SIZE)), (1, HEADS, SIZE), lambda y, i: y[..., i, :, :]),
    "einsum": (
        einsum("btd,sdhk->sbthk", (3, D, HEADS, SIZE), (3, HEADS, SIZE)),
        (1, HEADS, SIZE),
        lambda y, i: y[i],
    ),
    "einsum, ellipsis": (
        einsum("...d,dshk->...shk", (D, 3, HEADS, SIZE), (3, HEADS, SIZE)),
        (1, HEADS, SIZE),
        lambda y, i: y[..., i, :, :],
    ),
    "einsum, part axis inside": (
        einsum("btd,dshk->bsthk", (D, 3, HEADS, SIZE)),
        (1, HEADS, SIZE),
        lambda y, i: y[:, i],
    ),
}


@pytest.fixture(params=FUSED)
def fused(request):
    make, part_outputs, part = FUSED[request.param]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    layer = adapted_copy(base, rank=RANK, alpha=6.0, **QV)
    return types.SimpleNamespace(base=base, layer=layer, outputs=part_outputs, part=part)


def test_fused_step_0_and_merge(fused):
    x = random_input((2, 4, D))
    np.testing.assert_array_equal(fused.layer(x), fused.base(x))
    randomise(fused.layer.lora, 1)
    merged = lora_jax.merge(fused.layer)
    np.testing.assert_allclose(fused.layer(x), merged(x), **FLOAT32)
    assert nnx.graphdef(merged) == nnx.graphdef(fused.base)


def test_fused_part_without_update_has_the_bases_bits(fused):
    randomise(fused.layer.lora, 1)
    x = random_input((2, 4, D))
    got, expected = fused.layer(x), fused.base(x)
    np.testing.assert_array_equal(fused.part(got, 1), fused.part(expected, 1))
    for i in (0, 2):
        assert not np.allclose(fused.part(got, i), fused.part(expected, i), atol=0.1)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_fused_equals_loralib(fused, fan_in_fan_out):
    theirs = loralib.MergedLinear(
        D, 3 * D, r=RANK, lora_alpha=6, enable_lora=[True, False, True],
        fan_in_fan_out=fan_in_fan_out, merge_weights=False,
    )  # fmt: skip
    randomised_torch(theirs)
    for name, start in (("q", 0), ("v", 1)):  # loralib stacks the enabled parts
        a = numpy_of(theirs.lora_A)[start * RANK : (start + 1) * RANK]
        b = numpy_of(theirs.lora_B)[start * D : (start + 1) * D]
        pair = getattr(fused.layer.lora, name)
        assign(pair, a=a.T, b=b.T.reshape(RANK, *fused.outputs))
    weight = numpy_of(theirs.weight)
    kernel = weight if fan_in_fan_out else weight.T  # (d, 3d)
    if isinstance(fused.base, nnx.Einsum):
        order = fused.base.einsum_str.split("->")[0].split(",")[1]
        by_letter = kernel.reshape(D, 3, HEADS, SIZE)
        kernel = by_letter.transpose(["dshk".index(letter) for letter in order])
    assign(fused.layer, kernel=kernel.reshape(fused.layer.kernel.shape))
    bias = numpy_of(theirs.bias)
    if fused.layer.bias is None:
        bias = np.zeros_like(bias)
        theirs.bias = None
    else:
        assign(fused.layer, bias=bias.reshape(fused.layer.bias.shape))
    x = random_input((2, 4, D))
    expected = numpy_of(theirs(torch_of(x)))
    result = fused.layer(x)
    for i in range(3):
        got = np.asarray(fused.part(result, i)).reshape(2, 4, D)
        np.testing.assert_allclose(got, expected[..., i * D : (i + 1) * D], **FLOAT32)


def test_fused_parts_start_differently():
    layer = adapted_copy(linear(D, 3 * D)(nnx.Rngs(0)), **QV)
    assert not np.isin(layer.lora.q.a[...], layer.lora.v.a[...]).any()
    assert not hasattr(layer.lora, "k")


def test_fused_parts_of_unequal_sizes():
    """Grouped-query attention: more query than key and value heads."""
    base = linear(6, 12)(nnx.Rngs(0))
    randomise(base, 0)
    layer = adapted_copy(base, fused_sizes=(8, 2, 2), alpha=6.0, **QV)
    assert layer.lora.q.b.shape == (2, 8) and layer.lora.v.b.shape == (2, 2)
    randomise(layer.lora, 1)
    delta = np.zeros((6, 12))
    delta[:, :8] = exact(layer.lora.q.a[...]) @ exact(layer.lora.q.b[...])
    delta[:, 10:] = exact(layer.lora.v.a[...]) @ exact(layer.lora.v.b[...])
    x = random_input((5, 6))
    np.testing.assert_allclose(layer(x) - base(x), 6 / 2 * exact(x) @ delta, **FLOAT32)
    np.testing.assert_allclose(layers.delta(layer), 6 / 2 * delta, **FLOAT32)
    np.testing.assert_array_equal(layer(x)[:, 8:10], base(x)[:, 8:10])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"parts": ("q",)}, "need `fused`"),
        ({"fused": ("q", "k", "v"), "parts": ("x",)}, "choose parts among"),
        ({"fused": ("q", "k", "v"), "parts": ()}, "choose parts among"),
        ({"fused": ("q", "k"), "parts": ("q",), "fused_sizes": (6, 6)}, "must divide"),
        ({"fused": ("q", "k", "v", "g", "h"), "parts": ("q",)}, "must divide"),
        ({"fused_sizes": (6, 12), **QV}, "must divide"),
        ({"rank": 7, **QV}, "smaller side is 6"),
    ],
)
def test_bad_parts_are_refused_and_leave_the_layer(arguments, message):
    layer = linear(6, 18)(nnx.Rngs(0))
    before = nnx.graphdef(layer)
    with pytest.raises(ValueError, match=message):
        layers.adapt(
            layer, LoRASettings(**{"rank": 2, "alpha": 2.0, **arguments}), key(0), "block/qkv"
        )
    assert type(layer) is nnx.Linear and nnx.graphdef(layer) == before


def test_parts_of_a_grouped_convolution_are_refused():
    layer = conv(6, 12, (3, 3), feature_group_count=2)(nnx.Rngs(0))
    update = LoRASettings(rank=2, alpha=2.0, fused=("q", "k"), parts=("q",))
    with pytest.raises(ValueError, match=r"grouped .*adapt the whole layer"):
        layers.adapt(layer, update, key(0), "conv")


def test_parts_of_a_convolution():
    base = conv(3, 8, (3, 3))(nnx.Rngs(0))
    layer = adapted_copy(base, fused=("f", "g"), parts=("g",))
    randomise(layer.lora, 1)
    x = random_input((2, 5, 5, 3))
    np.testing.assert_allclose(layer(x), lora_jax.merge(layer)(x), **FLOAT32)
    np.testing.assert_array_equal(layer(x)[..., :4], base(x)[..., :4])


def test_parts_of_an_embedding_are_refused():
    """`attend` would have to know them."""
    layer = embed(10, 6)(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Embed.*adapt the whole layer"):
        layers.adapt(layer, LoRASettings(rank=2, alpha=2.0, fused=("f", "g"), parts=("g",)), key(0))
    assert type(layer) is nnx.Embed
