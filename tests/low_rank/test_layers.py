"""Checks of the LoRA form of every supported Flax layer, alone, stacked, fused and with dropout.

The base layer with a dense delta added to its weight (`merge`) is the reference of the low-rank
branch: the two are computed in different ways and must agree for random factors. loralib and PEFT
are the reference for what their users would get.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import lora_jax
from lora_jax.dropout import dropout
from lora_jax.low_rank import layers, seeding
from lora_jax.low_rank.contraction import Contraction
from lora_jax.low_rank.settings import LoRASettings

loralib = pytest.importorskip("loralib")
peft = pytest.importorskip("peft")

torch.set_num_threads(1)


pytestmark = pytest.mark.usefixtures("quick_compilation")


# Sums of up to a few hundred float32 products of size about 1, in another order.
FLOAT32 = {"rtol": 2e-5, "atol": 5e-5}


# Random initial values of a base are slow to compile for every shape; `randomise` sets them.
ZEROS = nnx.initializers.zeros


def linear(*sizes, **settings):
    return lambda rngs: nnx.Linear(*sizes, kernel_init=ZEROS, rngs=rngs, **settings)


def general(*sizes, **settings):
    return lambda rngs: nnx.LinearGeneral(*sizes, kernel_init=ZEROS, rngs=rngs, **settings)


def einsum(*arguments, **settings):
    return lambda rngs: nnx.Einsum(*arguments, kernel_init=ZEROS, rngs=rngs, **settings)


def embed(*sizes, **settings):
    return lambda rngs: nnx.Embed(*sizes, embedding_init=ZEROS, rngs=rngs, **settings)


def conv(*arguments, **settings):
    return lambda rngs: nnx.Conv(*arguments, kernel_init=ZEROS, rngs=rngs, **settings)


# name: (constructor, shape of the input, rank)
CASES = {
    "linear": (linear(5, 7), (3, 5), 3),
    "linear, no bias": (linear(5, 7, use_bias=False), (3, 5), 3),
    "linear, vector": (linear(5, 7), (5,), 2),
    "linear, sequence": (linear(6, 4), (2, 3, 6), 4),
    "general, one axis": (general(5, 7), (3, 5), 2),
    "general, to heads": (general(6, (2, 4)), (3, 5, 6), 3),
    "general, from heads": (general((2, 4), 6, axis=(-2, -1)), (3, 5, 2, 4), 3),
    "general, no bias": (general((2, 4), (3, 2), axis=(-2, -1), use_bias=False), (5, 2, 4), 2),
    "general, axis 1 and last": (general((3, 4), (2, 5), axis=(1, -1)), (2, 3, 5, 4), 3),
    "general, axis 0": (general(4, (2, 3), axis=0), (4, 5), 2),
    # nnx.LinearGeneral sorts the axes, so in_features are the sizes in the input's own order.
    "general, last and axis 1": (general((3, 4), 5, axis=(-1, 1)), (2, 3, 5, 4), 3),
    "general, equal sizes in reverse": (general((3, 3), 5, axis=(-1, -2)), (2, 3, 3), 3),
    "general, batch axis": (general(4, 5, batch_axis={0: 3}), (3, 6, 4), 2),
    "general, batch axis, inner": (general(4, (2, 5), axis=1, batch_axis={0: 3}), (3, 4, 6), 2),
    "general, two batch axes": (general(4, 5, batch_axis={0: 2, 1: 3}), (2, 3, 6, 4), 2),
    "general, batch axes in reverse": (general(4, 5, batch_axis={1: 3, 0: 3}), (3, 3, 6, 4), 2),
    "einsum, heads": (einsum("nta,hab->nthb", (3, 4, 5), (3, 5)), (2, 6, 4), 3),
    "einsum, no bias": (einsum("nta,hab->nthb", (3, 4, 5)), (2, 6, 4), 2),
    "einsum, ellipsis": (einsum("...a,ab->...b", (4, 5), (5,)), (2, 3, 4), 2),
    "einsum, ellipsis, heads": (einsum("...a,ahb->...hb", (4, 3, 5), (3, 5)), (2, 6, 4), 2),
    "einsum, experts": (einsum("ebi,eio->ebo", (3, 4, 5), (3, 5)), (3, 2, 4), 2),
    "einsum, experts of tokens": (einsum("bei,eio->beo", (3, 4, 5)), (2, 3, 4), 2),
    "einsum, expert axis last": (einsum("bie,oie->beo", (5, 4, 3)), (2, 4, 3), 2),
    "einsum, transposed": (einsum("bi,oi->bo", (5, 4), (5,)), (3, 4), 3),
    "einsum, contracts two": (einsum("bhk,hkd->bd", (2, 4, 6), (6,)), (3, 2, 4), 3),
    "einsum, contracts two, permuted": (einsum("bhk,kdh->bd", (4, 6, 2)), (3, 2, 4), 3),
    "einsum, output first": (einsum("btd,sdhk->sbthk", (3, 4, 2, 5)), (2, 6, 4), 2),
    "einsum, output permuted": (einsum("btd,dhk->bkth", (4, 2, 5)), (2, 6, 4), 2),
    "einsum, sums an input axis": (einsum("bti,io->bo", (4, 5)), (2, 3, 4), 2),
    "einsum, letters r and s": (einsum("brs,st->brt", (4, 5)), (2, 3, 4), 2),
    "einsum, spaces, capitals": (einsum("B i , i O -> B O", (4, 5)), (3, 4), 2),
    "embed": (embed(10, 6), (3, 4), 3),
    "embed, one index": (embed(10, 6), (), 2),
    "embed, one row": (embed(1, 6), (3, 4), 1),
    "conv 1D": (conv(4, 5, 3), (2, 9, 4), 3),
    "conv 1D, valid": (conv(4, 5, (3,), padding="VALID"), (2, 9, 4), 3),
    "conv 1D, causal": (conv(4, 5, 3, padding="CAUSAL"), (2, 9, 4), 3),
    "conv 1D, causal, dilated": (
        conv(4, 5, 3, padding="CAUSAL", kernel_dilation=2), (2, 9, 4), 3,
    ),
    "conv 1D, no batch": (conv(4, 5, 3), (9, 4), 3),
    "conv 2D": (conv(3, 4, (3, 3)), (2, 6, 7, 3), 3),
    "conv 2D, no bias": (conv(3, 4, (3, 3), use_bias=False), (2, 6, 7, 3), 3),
    "conv 2D, stride": (conv(3, 4, (3, 2), strides=(2, 1)), (2, 6, 7, 3), 3),
    "conv 2D, stride None": (conv(3, 4, (3, 3), strides=None), (2, 6, 7, 3), 3),
    "conv 2D, circular, stride": (
        conv(3, 4, (3, 3), strides=2, padding="CIRCULAR"), (2, 6, 7, 3), 3,
    ),
    "conv 2D, reflect": (conv(3, 4, (3, 3), padding="REFLECT"), (2, 6, 7, 3), 3),
    "conv 2D, int padding": (conv(3, 4, (3, 3), padding=2), (2, 6, 7, 3), 3),
    "conv 2D, pairs": (conv(3, 4, (3, 3), padding=((1, 2), (0, 1))), (2, 6, 7, 3), 3),
    "conv 2D, dilated": (conv(3, 4, (3, 3), kernel_dilation=(2, 1)), (2, 8, 7, 3), 3),
    "conv 2D, input dilated": (
        conv(3, 4, (3, 3), input_dilation=2, padding=((1, 1), (0, 2))), (2, 6, 7, 3), 3,
    ),
    "conv 2D, groups": (conv(6, 8, (3, 3), feature_group_count=2), (2, 6, 7, 6), 3),
    "conv 2D, groups, stride, dilated": (
        conv(6, 9, (2, 3), strides=2, kernel_dilation=2, feature_group_count=3),
        (2, 8, 7, 6), 2,
    ),
    "conv 2D, depthwise": (conv(4, 4, (3, 3), feature_group_count=4), (2, 6, 7, 4), 1),
    "conv 2D, 1x1": (conv(5, 6, (1, 1)), (2, 4, 3, 5), 3),
    "conv 2D, no batch": (conv(3, 4, (3, 3)), (6, 7, 3), 3),
    "conv 2D, no batch, groups": (conv(6, 8, (3, 3), feature_group_count=2), (6, 7, 6), 2),
    "conv 2D, two batch axes": (conv(3, 4, (3, 3)), (2, 3, 6, 7, 3), 3),
    "conv 3D": (conv(2, 4, (2, 3, 2), strides=(1, 2, 1)), (2, 4, 5, 3, 2), 3),
}  # fmt: skip


def randomise(model, seed, only=nnx.Param):
    """Random values in place of zeros (biases, B) and of everything else."""
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model, only)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), variable.dtype)


def adapted_copy(base, update=None, seed=0, **arguments):
    layer = nnx.clone(base)
    layers.adapt(layer, update or LoRASettings(**{"rank": 2, "alpha": 3.0, **arguments}), key(seed))
    return layer


def key(seed):
    return jax.random.key(seed, impl="rbg")  # compiles five times faster than threefry


def exact(array):
    return np.asarray(array).astype(np.float64)


def random_input(shape, integers_below=None, seed=1):
    rng = np.random.default_rng(seed)
    if integers_below:
        return jnp.asarray(rng.integers(0, integers_below, shape), jnp.int32)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A layer of every kind: base, adapted at step 0, with random factors."""
    make, shape, rank = CASES[request.param]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    fresh = adapted_copy(base, rank=rank)
    trained = nnx.clone(fresh)
    randomise(trained.lora, 2)
    x = random_input(shape, 10 if isinstance(base, nnx.Embed) else None)
    return types.SimpleNamespace(base=base, fresh=fresh, trained=trained, x=x)


@pytest.fixture(scope="module")
def results(case):
    """Outputs and gradients of the factors, by the low-rank branch and by the dense delta."""
    graphdef, factors, rest = nnx.split(case.trained, nnx.LoRAParam, ...)

    def by_rank(factors, rest, x):
        return nnx.merge(graphdef, factors, rest)(x)

    def dense(factors, rest, x):
        return lora_jax.merge(nnx.merge(graphdef, factors, rest))(x)

    @jax.jit
    def run(base, fresh, factors, rest, x):
        outputs, gradients = [], []
        for forward in (by_rank, dense):
            y, pull_back = jax.vjp(lambda f, forward=forward: forward(f, rest, x), factors)
            outputs.append(y)
            gradients.append(pull_back(jnp.cos(jnp.arange(y.size)).reshape(y.shape))[0])
        return {
            "base": base(x), "fresh": fresh(x), "outputs": outputs, "gradients": gradients,
        }  # fmt: skip

    return types.SimpleNamespace(**run(case.base, case.fresh, factors, rest, case.x))


def test_output_at_step_0_is_the_bases(results):
    np.testing.assert_array_equal(results.fresh, results.base)


def test_one_factor_is_zero_and_the_other_is_not(case):
    zero, random = (case.fresh.lora.a, case.fresh.lora.b)
    if not isinstance(case.base, nnx.Embed):  # only an embedding starts with A = 0
        zero, random = random, zero
    assert not np.any(zero[...]) and np.all(random[...] != 0)


def test_base_weights_stay_at_their_paths(case):
    own = lora_jax.parameters(case.trained)
    for path, value in lora_jax.parameters(case.base).items():
        np.testing.assert_array_equal(own.pop(path), value)
    assert sorted(own) == ["lora/a", "lora/b"]


def test_branch_equals_dense_delta(results):
    by_rank, dense = results.outputs
    assert not np.allclose(by_rank, results.base, atol=0.1)
    np.testing.assert_allclose(by_rank, dense, **FLOAT32)


def test_merged_layer_is_of_the_original_kind(case):
    merged = nnx.eval_shape(lambda: lora_jax.merge(case.trained))
    assert type(merged) is type(case.base)
    assert nnx.graphdef(merged) == nnx.graphdef(case.base)


def test_gradient_of_the_factors_is_that_through_the_dense_weight(results):
    for name in ("a", "b"):
        got, expected = (gradient["lora"][name][...] for gradient in results.gradients)
        scale = np.abs(expected).max()
        assert scale > 1e-3
        # Sums of up to 300 terms that partly cancel: relative to the largest entry.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5 * scale)


def test_linear_equals_float64():
    base = linear(40, 30)(nnx.Rngs(0))
    randomise(base, 0)
    layer = adapted_copy(base, rank=4, alpha=16.0)
    randomise(layer.lora, 1)
    x = random_input((8, 40))
    w, bias, a, b = (exact(v[...]) for v in (base.kernel, base.bias, layer.lora.a, layer.lora.b))
    expected = exact(x) @ (w + 16 / 4 * a @ b) + bias
    # float32 sums of 40 products of size 1, then times factors of size 10.
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scaling, scale", [("alpha/r", 4.0), ("alpha/sqrt(r)", 8.0)])
def test_alpha_is_kept_and_scales_the_branch(scaling, scale):
    """Keras' Dense(lora_rank=4, lora_alpha=16) ends with alpha 4."""
    base = linear(6, 5)(nnx.Rngs(0))
    layer = adapted_copy(base, rank=4, alpha=16.0, scaling=scaling)
    randomise(layer.lora, 1)
    assert (layer.lora.rank, layer.lora.alpha, layer.lora.scale) == (4, 16.0, scale)
    x = random_input((3, 6))
    expected = scale * exact(x) @ exact(layer.lora.a[...]) @ exact(layer.lora.b[...])
    np.testing.assert_allclose(layer(x) - base(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [10, 1])
def test_attend_of_an_adapted_embedding_uses_the_adapted_matrix(vocabulary):
    layer = adapted_copy(embed(vocabulary, 6)(nnx.Rngs(0)), rank=min(vocabulary, 3))
    query = random_input((2, 5, 6))
    base = embed(vocabulary, 6)(nnx.Rngs(0))
    np.testing.assert_array_equal(layer.attend(query), base.attend(query))
    randomise(layer.lora, 1)
    result = layer.attend(query)
    assert result.shape == (2, 5, vocabulary)
    np.testing.assert_allclose(result, lora_jax.merge(layer).attend(query), **FLOAT32)


def test_embedding_starts_as_in_loralib():
    """A is zero and B is N(0, 1); PEFT and loralib agree on these roles."""
    layer = adapted_copy(embed(50, 400)(nnx.Rngs(0)), rank=16)
    reference = loralib.Embedding(50, 400, r=16)
    assert not np.any(layer.lora.a[...]) and not reference.lora_A.detach().numpy().any()
    ours, theirs = np.asarray(layer.lora.b[...]), reference.lora_B.detach().numpy().T
    assert ours.shape == theirs.shape == (16, 400)
    # 6400 values: the std is known to 0.9%.
    assert ours.std() == pytest.approx(1, rel=0.05) and theirs.std() == pytest.approx(1, rel=0.05)


# --- Against loralib and PEFT ---------------------------------------------------------------------


def torch_of(array):
    return torch.tensor(np.asarray(array))


def randomised_torch(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def peft_of(module, **config):
    """A PEFT model around one layer, with random weights everywhere."""
    holder = torch.nn.Module()
    holder.layer = module
    holder.forward = module.forward
    config = peft.LoraConfig(target_modules=["layer"], **config)
    layer = peft.inject_adapter_in_model(config, holder).layer
    return randomised_torch(layer).eval()


def numpy_of(tensor):
    return tensor.detach().numpy().copy()


def assign(layer, **values):
    for name, value in values.items():
        variable = layer
        for part in name.split("__"):
            variable = getattr(variable, part)
        assert variable.shape == value.shape, name
        variable[...] = jnp.asarray(value)


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


# --- Attention, stacks, types ---------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
def test_multi_head_attention(jit):
    base = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    method = lora_jax.lora("query|key|value|out", rank=3, alpha=6)
    model = method.insert(base, key(1))
    run = jax.jit(lambda m, x: m(x)) if jit else lambda m, x: m(x)
    x = random_input((2, 5, 8))
    np.testing.assert_array_equal(run(model, x), run(base, x))
    assert {path: pair.lora.b.shape for path, pair in layers.adapted_layers(model).items()} == {
        "key": (3, 2, 4), "out": (3, 8), "query": (3, 2, 4), "value": (3, 2, 4),
    }  # fmt: skip
    randomise(model, 2, nnx.LoRAParam)
    result = run(model, x)
    assert not np.allclose(result, run(base, x), atol=0.1)
    # Softmax over sharp scores: errors of float32 scores of size about 50.
    np.testing.assert_allclose(result, run(lora_jax.merge(model), x), rtol=1e-3, atol=1e-3)


DEPTH = 3
STACKS = {
    name: CASES[name]
    for name in (
        "linear", "general, from heads", "general, batch axis", "einsum, heads", "einsum, experts",
        "embed", "conv 1D", "conv 2D, groups, stride, dilated",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    "name, parts", [(name, False) for name in STACKS] + [("linear", True), ("einsum, heads", True)]
)
def test_scanned_stack_equals_a_loop_over_single_layers(name, parts):
    make, shape, rank = STACKS[name]
    arguments = {"rank": rank, "alpha": 3.0}
    if parts:
        sizes = (2, 5) if name == "linear" else (2, 1)
        arguments |= {"rank": 2, "fused": ("f", "g"), "parts": ("g",), "fused_sizes": sizes}
    stack = nnx.split_rngs(splits=DEPTH)(nnx.vmap(make))(nnx.Rngs(0))
    randomise(stack, 0)
    layers.adapt(stack, LoRASettings(**arguments), key(1))
    start = stack.lora.g if parts else stack.lora
    first = start.b if isinstance(stack, nnx.Embed) else start.a
    assert first.shape[0] == DEPTH
    assert not np.isin(first[0], first[1]).any(), "layers of a stack start with equal values"
    randomise(stack.lora, 2)
    graphdef, state = nnx.split(stack)
    single = make(nnx.Rngs(0))
    layers.adapt(single, LoRASettings(**arguments), key(1))
    single_graphdef = nnx.graphdef(single)
    x = random_input(shape, 10 if "embed" in name else None)

    @jax.jit
    def run(state, x):
        _, scanned = jax.lax.scan(lambda c, s: (c, nnx.merge(graphdef, s)(x)), None, state)
        deltas = layers.delta(nnx.merge(graphdef, state))
        loop = []
        for i in range(DEPTH):
            layer = nnx.merge(single_graphdef, jax.tree.map(lambda v, i=i: v[i], state))
            loop.append((layer(x), layers.delta(layer)))
        return scanned, deltas, loop

    scanned, deltas, loop = run(state, x)
    assert deltas.shape == stack.weight_shape()
    for i, (output, delta) in enumerate(loop):
        np.testing.assert_allclose(scanned[i], output, **FLOAT32)
        np.testing.assert_allclose(deltas[i], delta, rtol=1e-5, atol=1e-5)


def test_stack_starts_as_large_as_a_single_layer():
    """he_uniform of a (12, d, r) factor sees a fan-in of 12 d and is 3.5 times too small."""
    single = adapted_copy(linear(128, 128)(nnx.Rngs(0)), rank=8)
    stack = nnx.split_rngs(splits=12)(nnx.vmap(linear(128, 128)))(nnx.Rngs(0))
    layers.adapt(stack, LoRASettings(rank=8, alpha=8.0), key(0))
    assert stack.lora.a.shape == (12, 128, 8) and stack.lora.b.shape == (12, 8, 128)
    assert not np.any(stack.lora.b[...])
    stds = np.std(np.asarray(stack.lora.a[...]), axis=(1, 2))
    # 1024 values a layer: the std is known to 1.4%.
    np.testing.assert_allclose(stds, np.std(single.lora.a[...]), rtol=0.1)
    np.testing.assert_allclose(stds, 128**-0.5 / 3**0.5, rtol=0.1)


@pytest.mark.parametrize("name", ["general, batch axis", "einsum, experts"])
def test_experts_have_factors_of_their_own(name):
    """qwix gives the experts of an einsum one B, those of a dot_general one each."""
    make, _, rank = CASES[name]
    layer = adapted_copy(make(nnx.Rngs(0)), rank=rank)
    assert layer.lora.a.shape == (3, 4, rank) and layer.lora.b.shape == (3, rank, 5)
    assert not np.isin(layer.lora.a[0], layer.lora.a[1]).any()


TYPED = ["linear", "general, to heads", "einsum, heads", "embed", "conv 2D, groups"]


@pytest.mark.parametrize("how", ["weights", "computation"])
@pytest.mark.parametrize("name", TYPED)
def test_bfloat16_base_with_float32_factors_keeps_its_type(name, how):
    make, shape, rank = CASES[name]
    base = make(nnx.Rngs(0))
    x = random_input(shape, 10 if name == "embed" else None)
    if how == "weights":
        for _, variable in nnx.to_flat_state(nnx.state(base)):
            variable.set_raw_value(variable[...].astype(jnp.bfloat16))
        x = x if name == "embed" else x.astype(jnp.bfloat16)
        base.dtype = jnp.bfloat16 if name == "embed" else base.dtype
    else:
        base.dtype = jnp.bfloat16
    layer = adapted_copy(base, rank=rank)
    assert layer.lora.a.dtype == layer.lora.b.dtype == jnp.float32
    at_start, of_base = (jax.jit(lambda m, x: m(x))(m, x) for m in (layer, base))
    np.testing.assert_array_equal(exact(at_start), exact(of_base))
    randomise(layer.lora, 1)
    graphdef, factors, rest = nnx.split(layer, nnx.LoRAParam, ...)

    @jax.jit
    def run(factors, rest, x):
        def total(factors):
            y = nnx.merge(graphdef, factors, rest)(x)
            return y.astype(jnp.float32).sum(), y

        gradient, y = jax.grad(total, has_aux=True)(factors)
        return y, lora_jax.merge(nnx.merge(graphdef, factors, rest))(x), gradient

    y, merged, gradient = run(factors, rest, x)
    assert y.dtype == merged.dtype == of_base.dtype == jnp.bfloat16
    assert gradient["lora"]["a"].dtype == gradient["lora"]["b"].dtype == jnp.float32
    # bfloat16 has 8 bits: 3 roundings of 0.4%, relative to the largest values.
    np.testing.assert_allclose(exact(y), exact(merged), rtol=0.02, atol=0.02 * abs(exact(y)).max())


def test_einsum_called_with_another_equation_is_not_silently_wrong():
    base = einsum("bi,io->bo", (4, 4))(nnx.Rngs(0))
    layer = adapted_copy(base)
    randomise(layer.lora, 1)
    x = random_input((3, 4))
    try:
        result = layer(x, "bi,oi->bo")
    except (ValueError, TypeError):
        return
    np.testing.assert_allclose(result, lora_jax.merge(layer)(x, "bi,oi->bo"), **FLOAT32)


# --- The registry ---------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    """Forms that a test registers are gone after it."""
    monkeypatch.setattr(layers, "_LORA_LAYERS", dict(layers._LORA_LAYERS))


class TransposedLinear(nnx.Module):
    """A layer of a user's own: weight (out, in)."""

    def __init__(self, inputs, outputs, rngs):
        self.weight_matrix = nnx.Param(jax.random.normal(rngs.params(), (outputs, inputs)))

    def __call__(self, inputs):
        return inputs @ self.weight_matrix[...].T


def test_unsupported_layer_is_refused_with_the_remedy():
    with pytest.raises(TypeError) as error:
        layers.adapt(
            TransposedLinear(4, 5, nnx.Rngs(0)), LoRASettings(2, 2.0), key(0), "encoder/odd"
        )
    text = str(error.value)
    assert "encoder/odd" in text and "TransposedLinear" in text
    for name in ("Linear", "LinearGeneral", "Einsum", "Embed", "Conv"):
        assert f"flax.{name}" in text
    assert "lora_jax.register(TransposedLinear)" in text


def test_subclass_of_a_supported_layer_is_refused():
    class Doubled(nnx.Linear):
        def __call__(self, inputs):
            return 2 * super().__call__(inputs)

    layer = Doubled(4, 5, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="no LoRA layer"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is Doubled and not hasattr(layer, "lora")


def test_registered_layer_of_a_user_works(registry):
    @layers.register(TransposedLinear)
    class LoRATransposedLinear(layers.LoRALayer, TransposedLinear):
        weight = "weight_matrix"

        def roles(self):
            return Contraction(batch=(), inputs=(1,), outputs=(0,))

        def low_rank_output(self, inputs, a, b):
            return inputs @ a @ b

    assert TransposedLinear in layers.supported()
    base = TransposedLinear(4, 5, nnx.Rngs(0))
    model = lora_jax.lora("", rank=2).insert(base, key(0))
    x = random_input((3, 4))
    np.testing.assert_array_equal(model(x), base(x))
    randomise(model.lora, 1)
    merged = lora_jax.merge(model)
    assert type(merged) is TransposedLinear
    np.testing.assert_allclose(model(x), merged(x), **FLOAT32)


def test_registry_is_as_before():
    assert set(layers.supported()) == {
        nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Embed, nnx.Conv,
    }  # fmt: skip


def test_form_that_is_no_subclass_is_refused(registry):
    with pytest.raises(TypeError, match="must subclass LoRALayer and TransposedLinear"):

        @layers.register(TransposedLinear)
        class Wrong(layers.LoRALayer):
            pass


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "positive integer"),
        ({"rank": True}, "positive integer"),
        ({"rank": 5}, "smaller side is 4"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": True}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"init": "zeros"}, "init"),
        ({"scaling": "r"}, "scaling"),
    ],
)
def test_bad_settings_are_refused_and_leave_the_layer(arguments, message):
    layer = linear(4, 6)(nnx.Rngs(0))
    before = nnx.graphdef(layer)
    with pytest.raises(ValueError, match=message):
        layers.adapt(layer, LoRASettings(**{"rank": 2, "alpha": 2.0, **arguments}), key(0))
    assert type(layer) is nnx.Linear and nnx.graphdef(layer) == before


def test_adapting_twice_is_refused():
    layer = adapted_copy(linear(4, 6)(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="adapted already"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))


def test_masked_convolution_is_refused():
    layer = conv(3, 4, (3,), mask=jnp.tril(jnp.ones((3, 3, 4))))(nnx.Rngs(0))
    with pytest.raises(ValueError, match="masked"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is nnx.Conv


@pytest.mark.parametrize("equation", ["bi,ij->b", "bi,...i->b..."])
def test_einsum_without_clear_roles_is_refused(equation):
    layer = einsum(equation, (4, 5))(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"einsum|role"):
        layers.adapt(layer, LoRASettings(2, 2.0), key(0))
    assert type(layer) is nnx.Einsum


def test_global_functions_are_not_patched():
    """qwix replaces jnp.einsum and lax.dot_general while a model runs."""
    before = (jnp.einsum, jax.lax.dot_general, jax.lax.conv_general_dilated, nnx.Linear.__call__)
    seen = []

    class Watch(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            seen.append((jnp.einsum, jax.lax.dot_general))
            return self.layer(x)

    model = lora_jax.lora("layer", rank=2).insert(Watch(nnx.Rngs(0)), key(0))
    model(jnp.ones((1, 4)))
    assert seen == [before[:2]]
    after = (jnp.einsum, jax.lax.dot_general, jax.lax.conv_general_dilated, nnx.Linear.__call__)
    assert after == before


# --- Shared layers --------------------------------------------------------------------------------


class Tied(nnx.Module):
    """One Linear used at two places, and an embedding that is also the output layer."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 6, rngs=rngs)
        self.first = nnx.Linear(6, 6, rngs=rngs)
        self.second = self.first

    def __call__(self, ids):
        return self.embed.attend(self.second(jnp.tanh(self.first(self.embed(ids)))))


@pytest.mark.parametrize("jit", [False, True])
def test_tied_layers_are_adapted_once_and_every_use_sees_it(jit):
    base = Tied(nnx.Rngs(0))
    model = lora_jax.lora("embed|first", rank=2).insert(base, key(0))
    assert model.first is model.second and isinstance(model.second, layers.LoRALayer)
    assert sorted(layers.adapted_layers(model)) == ["embed", "first"]
    assert len([p for p in lora_jax.parameters(model) if "lora" in p]) == 4
    randomise(model, 1, nnx.LoRAParam)
    ids = random_input((5,), 10)
    run = jax.jit(lambda m, i: m(i)) if jit else lambda m, i: m(i)

    embedding = exact(base.embed.embedding[...]) + exact(layers.delta(model.embed))
    kernel = exact(base.first.kernel[...]) + exact(layers.delta(model.first))
    hidden = np.tanh(embedding[np.asarray(ids)] @ kernel) @ kernel
    np.testing.assert_allclose(run(model, ids), hidden @ embedding.T, rtol=1e-3, atol=1e-3)


# --- Dropout --------------------------------------------------------------------------------------


def pass_through(rate, size=64, stack=0, **arguments):
    """A Linear whose base is zero and whose branch is the identity: it shows the dropped input."""
    make = linear(size, size * max(1, len(arguments.get("fused", ()))))
    layer = (nnx.split_rngs(splits=stack)(nnx.vmap(make)) if stack else make)(nnx.Rngs(0))
    layers.adapt(layer, LoRASettings(size, float(size), dropout=rate, **arguments), key(0))
    for _, variable in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        variable[...] = jnp.zeros_like(variable[...])
    for _, variable in nnx.to_flat_state(nnx.state(layer, nnx.LoRAParam)):
        variable[...] = jnp.broadcast_to(jnp.eye(size), variable.shape)
    return layer


def seeded(layer, seed):
    copy = nnx.clone(layer)
    seeding.seed_dropout(copy, jax.random.key(seed))
    return copy


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_the_expected_share_and_size(rate):
    y = np.asarray(seeded(pass_through(rate), 1)(jnp.ones((128, 64))))
    assert set(np.round(np.unique(y), 4)) == {0, np.float32(round(1 / (1 - rate), 4))}
    # 8192 values: the share has a standard deviation below 0.0056.
    assert np.mean(y == 0) == pytest.approx(rate, abs=0.025)


def test_no_key_means_no_dropout():
    layer, x = pass_through(0.5), random_input((4, 64))
    np.testing.assert_allclose(layer(x), x, rtol=1e-6)
    seeded(layer, 1)  # seeding a copy leaves the layer as it is
    np.testing.assert_array_equal(layer(x), layer(x))
    np.testing.assert_allclose(layer(x), x, rtol=1e-6)


def test_dropout_is_on_the_branch_only():
    base = linear(16, 8)(nnx.Rngs(0))
    layer = seeded(adapted_copy(base, rank=4, dropout=0.5), 1)
    x = random_input((4, 16))
    np.testing.assert_array_equal(layer(x), base(x))  # B is zero: what is left is the base


def test_dropout_is_a_function_of_the_key():
    layer, x = pass_through(0.5), jnp.ones((4, 64))
    np.testing.assert_array_equal(seeded(layer, 1)(x), seeded(layer, 1)(x))
    assert np.any(seeded(layer, 1)(x) != seeded(layer, 2)(x))
    again = seeded(seeded(layer, 2), 1)  # a new key replaces the old one
    np.testing.assert_array_equal(again(x), seeded(layer, 1)(x))


def test_dropout_leaves_parameters_and_labels_as_they_are():
    layer = seeded(pass_through(0.5), 1)
    assert sorted(lora_jax.parameters(layer)) == ["bias", "kernel", "lora/a", "lora/b"]


def test_mean_over_dropout_keys_is_the_branch_without_dropout():
    layer, x = pass_through(0.25), random_input((2, 64))
    graphdef, state = nnx.split(layer)

    def run(one_key):
        model = nnx.merge(graphdef, state)
        seeding.seed_dropout(model, one_key)
        return model(x)

    mean = jax.jit(lambda keys: jax.vmap(run)(keys).mean(0))(
        jax.random.split(jax.random.key(3), 4096)
    )
    # One value has the standard deviation |x| sqrt(1/3); over 4096 keys |x| * 0.009, 5 of those.
    np.testing.assert_allclose(mean, x, rtol=0.05)


def test_layers_of_a_stack_drop_differently():
    layer = seeded(pass_through(0.5, stack=3), 1)
    graphdef, state = nnx.split(layer)
    x = jnp.ones((4, 64))
    _, y = jax.lax.scan(lambda c, s: (c, nnx.merge(graphdef, s)(x)), None, state)
    for i in range(3):
        assert np.mean(y[i] == 0) == pytest.approx(0.5, abs=0.15)  # 256 values, 5 sigma
        # Independent masks agree on half of the 256 places; equal ones would on all.
        assert np.mean(y[i] == y[i - 1]) == pytest.approx(0.5, abs=0.15)


def test_parts_and_layers_drop_differently():
    layer = seeded(pass_through(0.5, fused=("q", "k", "v"), parts=("q", "v")), 1)
    q, k, v = np.split(np.asarray(layer(jnp.ones((4, 64)))), 3, axis=-1)
    assert not k.any()
    assert np.mean(q == v) == pytest.approx(0.5, abs=0.15)

    class Two(nnx.Module):
        def __init__(self):
            self.one, self.two = pass_through(0.5), pass_through(0.5)

    model = seeded(Two(), 1)
    one, two = model.one(jnp.ones((4, 64))), model.two(jnp.ones((4, 64)))
    assert np.mean(one == two) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    "name", ["general, from heads", "einsum, heads", "conv 2D, groups", "embed"]
)
def test_dropout_works_for_every_kind_of_layer(name):
    """An embedding's branch has indices as its input: nothing is dropped there."""
    make, shape, rank = CASES[name]
    layer = adapted_copy(make(nnx.Rngs(0)), rank=rank, dropout=0.5)
    randomise(layer.lora, 1)
    x = random_input(shape, 10 if name == "embed" else None)
    dropped = seeded(layer, 1)(x)
    assert np.all(np.isfinite(dropped))
    assert np.array_equal(dropped, layer(x)) == (name == "embed")


def test_merge_ignores_dropout():
    layer = pass_through(0.5)
    merged, also = lora_jax.merge(layer), lora_jax.merge(seeded(layer, 1))
    np.testing.assert_array_equal(merged.kernel[...], np.eye(64, dtype=np.float32))
    np.testing.assert_array_equal(also.kernel[...], merged.kernel[...])
    assert nnx.graphdef(also) == nnx.graphdef(linear(64, 64)(nnx.Rngs(0)))


# --- Dropout rates of runs ------------------------------------------------------------------------

RATES = [0.0, 0.1, 0.5, 0.8, 0.9]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_traced_rate_drops_as_the_same_number(dtype):
    x = random_input((5, 33)).astype(dtype)
    with_array = jax.jit(dropout)
    for rate in RATES:
        expected = jax.jit(functools.partial(dropout, rate=rate))(x, key=key(3))
        found = with_array(x, jnp.float32(rate), key(3))
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_array_equal(exact(found), exact(expected), err_msg=str(rate))
    assert dropout(x, jnp.float32(0.5), None) is x  # no key, no dropout


def three_layers(*rates):
    """A Linear, a fused one and a stack."""

    class Three(nnx.Module):
        def __init__(self):
            fused = {"fused": ("q", "k", "v"), "parts": ("q", "v")}
            self.one = pass_through(rates[0], size=8)
            self.two = pass_through(rates[1], size=8, **fused)
            self.three = pass_through(rates[2], size=8, stack=2)

        def __call__(self, x):
            graphdef, state = nnx.split(self.three)
            stacked = jax.lax.scan(lambda c, s: (c, nnx.merge(graphdef, s)(x)), None, state)[1]
            return self.one(x), self.two(x), stacked

    return Three()


PATHS = ["one/lora", "three/lora", "two/lora/q", "two/lora/v"]


def test_factor_pairs_are_named_as_their_leaves_are():
    model = three_layers(0.1, 0.2, 0.3)
    pairs = layers.factor_pairs(model)
    assert sorted(pairs) == PATHS
    leaves = lora_jax.parameters(model)
    assert sorted(path for path in leaves if "/lora/" in path) == [
        f"{path}/{factor}" for path in PATHS for factor in "ab"
    ]
    for path, pair in pairs.items():
        np.testing.assert_array_equal(leaves[f"{path}/a"], pair.a[...])
    assert [pairs[path].dropout for path in PATHS] == [0.1, 0.3, 0.2, 0.2]
    # A model that is one layer, and one that has none.
    assert list(layers.factor_pairs(pass_through(0.0, size=8))) == ["lora"]
    assert layers.factor_pairs(linear(4, 4)(nnx.Rngs(0))) == {}


@pytest.mark.parametrize("rates, of_model", [((0.5, 0.1, 0.25), 0.0), ((0.0, 0.5, 0.0), 0.75)])
def test_given_rates_are_those_of_a_model_that_has_them(rates, of_model):
    """They replace the model's own, a rate of 0 too."""
    expected = seeded(three_layers(*rates), 1)(x := random_input((4, 8)))
    graphdef, state = nnx.split(three_layers(*[of_model] * 3))

    @jax.jit
    def run(rates):
        model = nnx.merge(graphdef, state)
        seeding.seed_dropout(model, jax.random.key(1), rates)
        assert sorted(lora_jax.parameters(model)) == sorted(
            lora_jax.parameters(nnx.merge(graphdef, state))
        )
        return model(x)

    by_path = dict(zip(PATHS, np.float32(rates)[[0, 2, 1, 1]], strict=True))
    for found, own in zip(run(by_path), expected, strict=True):
        np.testing.assert_array_equal(found, own)


def test_rates_of_some_layers_leave_the_others_as_they_are():
    model = three_layers(0.5, 0.0, 0.25)
    expected = seeded(three_layers(0.5, 0.0, 0.5), 1)(x := random_input((4, 8)))
    seeding.seed_dropout(model, jax.random.key(1), {"three/lora": jnp.float32(0.5)})
    for found, own in zip(model(x), expected, strict=True):
        np.testing.assert_array_equal(found, own)
