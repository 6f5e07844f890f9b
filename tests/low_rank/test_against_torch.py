"""loralib and PEFT are the reference for what their users would get."""

import numpy as np
import pytest
import torch
from flax import nnx

from tests.low_rank.layer_cases import (
    FLOAT32,
    adapted_copy,
    conv,
    embed,
    linear,
    random_input,
    randomise,
)
from tests.low_rank.torch_layers import assign, numpy_of, peft_of, randomised_torch, torch_of

loralib = pytest.importorskip("loralib")
peft = pytest.importorskip("peft")

torch.set_num_threads(1)


def test_embedding_starts_as_in_loralib():
    """A is zero and B is N(0, 1); PEFT and loralib agree on these roles."""
    layer = adapted_copy(embed(50, 400)(nnx.Rngs(0)), rank=16)
    reference = loralib.Embedding(50, 400, r=16)
    assert not np.any(layer.lora.a[...]) and not reference.lora_A.detach().numpy().any()
    ours, theirs = np.asarray(layer.lora.b[...]), reference.lora_B.detach().numpy().T
    assert ours.shape == theirs.shape == (16, 400)
    # 6400 values: the std is known to 0.9%.
    assert ours.std() == pytest.approx(1, rel=0.05) and theirs.std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_linear_equals_peft(use_rslora):
    theirs = peft_of(torch.nn.Linear(5, 7), r=3, lora_alpha=6, use_rslora=use_rslora)
    scaling = "alpha/sqrt(r)" if use_rslora else "alpha/r"
    ours = adapted_copy(linear(5, 7)(nnx.Rngs(0)), rank=3, alpha=6.0, scaling=scaling)
    assign(
        ours,
        kernel=numpy_of(theirs.base_layer.weight).T,
        bias=numpy_of(theirs.base_layer.bias),
        lora__a=numpy_of(theirs.lora_A["default"].weight).T,
        lora__b=numpy_of(theirs.lora_B["default"].weight).T,
    )
    x = random_input((4, 5))
    np.testing.assert_allclose(ours(x), numpy_of(theirs(torch_of(x))), **FLOAT32)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")
def test_conv_equals_peft(groups):
    """PEFT's A sees all inputs and its B is grouped, so ours is the case of a block-diagonal A."""
    rank, inputs, outputs, alpha = 2, 6 // groups, 8 // groups, 6.0
    ours = conv(6, 8, (3, 2), strides=(2, 1), padding=1, feature_group_count=groups)(nnx.Rngs(0))
    ours = adapted_copy(ours, rank=rank, alpha=alpha)
    randomise(ours, 1)
    module = torch.nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=1, groups=groups)
    theirs = peft_of(module, r=groups * rank, lora_alpha=groups * alpha)
    a, b = np.asarray(ours.lora.a[...]), np.asarray(ours.lora.b[...])
    wide = np.zeros((groups, rank, groups, inputs, 3, 2), np.float32)
    for group in range(groups):
        wide[group, :, group] = a[group].transpose(3, 2, 0, 1)
    with torch.no_grad():
        theirs.base_layer.weight.copy_(torch_of(ours.kernel[...].transpose(3, 2, 0, 1)))
        theirs.base_layer.bias.copy_(torch_of(ours.bias[...]))
        theirs.lora_A["default"].weight.copy_(torch_of(wide.reshape(groups * rank, 6, 3, 2)))
        theirs.lora_B["default"].weight.copy_(
            torch_of(b.transpose(0, 2, 1).reshape(groups * outputs, rank, 1, 1))
        )
    x = random_input((2, 7, 6, 6))
    expected = numpy_of(theirs(torch_of(x.transpose(0, 3, 1, 2)))).transpose(0, 2, 3, 1)
    # Values reach a hundred: products of random factors over 18 to 36 inputs and the rank.
    np.testing.assert_allclose(ours(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("library", ["peft", "loralib"])
def test_embedding_equals_the_torch_libraries(library):
    if library == "peft":
        theirs = peft_of(torch.nn.Embedding(10, 6), r=3, lora_alpha=6)
        weight, a, b = (
            theirs.base_layer.weight,
            theirs.lora_embedding_A["default"],
            theirs.lora_embedding_B["default"],
        )
    else:
        theirs = randomised_torch(loralib.Embedding(10, 6, r=3, lora_alpha=6))
        weight, a, b = theirs.weight, theirs.lora_A, theirs.lora_B
    ours = adapted_copy(embed(10, 6)(nnx.Rngs(0)), rank=3, alpha=6.0)
    assign(ours, embedding=numpy_of(weight), lora__a=numpy_of(a).T, lora__b=numpy_of(b).T)
    x = random_input((4, 5), integers_below=10)
    np.testing.assert_allclose(ours(x), numpy_of(theirs(torch_of(x).long())), **FLOAT32)
