"""The U-Net against PyTorch `diffusers`, and against itself recomputed and in bfloat16."""

from __future__ import annotations

import diffusion_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from deviations import deviation
from diffusion_models import UNETS, channels_first, channels_last
from flax import nnx

import lora_jax as lj
from experiments.plan import denoising
from lora_jax import partition
from lora_jax.errors import InputError
from lora_jax.models.diffusion.components import UNET
from lora_jax.models.diffusion.files import load
from lora_jax.models.diffusion.layers import in_shapes
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.unet_config import UNetConfig
from lora_jax.models.tensors import published_name
from lora_jax.sharding.mesh import make_mesh

# Largest deviations from PyTorch in float64, relative to the largest value of the tensor. "sd1" reached 6e-7
# and 2e-6, and a U-Net with two layers in a block 2e-6 and 4e-5, where PyTorch's own float32 was 3e-5 away:
# norms over few pixels lose digits.
OUTPUTS, GRADIENTS = 1e-5, 1e-4
TRAINED = ("sd1", "one block")  # of which gradients are compared; each takes seconds to compile


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each variant, written by diffusers, and the model that wrote it."""
    made = {}

    def folder(variant):
        if variant not in made:
            theirs, path = diffusion_models.unet(variant), tmp_path_factory.mktemp("unet")
            theirs.save_pretrained(path)
            made[variant] = path, theirs
        return made[variant]

    return folder


def split(model):
    return partition.split(model, dict.fromkeys(partition.parameters(model), partition.TRAINABLE))


def both(model, *batch, projection):
    """The prediction, and the gradients of a random projection of it by path."""
    structure, params, rest = split(model)

    @jax.jit
    def run(params):
        def of(p):
            out = partition.join(structure, p, rest)(*batch)
            return jnp.sum(out * projection), out

        return jax.grad(of, has_aux=True)(params)

    gradients, out = run(params)
    return np.asarray(out), {k: np.asarray(v) for k, v in gradients.items()}


def ours_of(values, model):
    """Tensors of PyTorch by our paths, in our order of axes."""
    layout = UNET.layout(partition.parameters(model))
    found = {}
    for path in partition.parameters(model):
        value = values[published_name(path, layout)].detach().numpy()
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
        found[path] = value.transpose(order)
    return found


def reference(theirs, sample, times, context, mask=None):
    """What diffusers predicts in float64."""
    wide = lambda x: None if x is None else torch.tensor(x)  # noqa: E731
    return theirs.double()(
        channels_first(sample).double(), wide(times), wide(context).double(),
        encoder_attention_mask=wide(mask),
    ).sample  # fmt: skip


@pytest.mark.parametrize("variant", UNETS)
def test_predictions_and_gradients_equal_diffusers(variant, folders):
    folder, theirs = folders(variant)
    ours = load(folder, UNET)
    assert len(partition.parameters(ours)) == len(list(theirs.parameters()))
    odd = variant == "sd2"  # a size that cannot be halved
    sample, times, context = diffusion_models.inputs(ours.config, (5, 6) if odd else (8, 8))
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool) if variant == "sd1" else None
    expected = reference(theirs, sample, times, context, mask)
    batch = (sample, times, context if ours.config.attends else None, mask)
    if variant not in TRAINED:
        found = np.asarray(nnx.jit(lambda model, batch: model(*batch))(ours, batch))
        assert deviation({"": found}, {"": channels_last(expected)}) < OUTPUTS
        return
    projection = np.random.default_rng(2).standard_normal(channels_last(expected).shape, np.float32)
    (expected * channels_first(projection)).sum().backward()
    found, gradients = both(ours, *batch, projection=projection)
    named = {name: value.grad for name, value in theirs.named_parameters()}
    reached = (
        deviation({"": found}, {"": channels_last(expected)}),
        deviation(gradients, ours_of(named, ours)),
    )
    print(f"\ndeviation {variant}: prediction {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < OUTPUTS
    assert reached[1] < GRADIENTS


@pytest.fixture(scope="module")
def small(folders):
    """The smallest U-Net with attention, and a batch of it."""
    model = load(folders("one block")[0], UNET)
    return model, diffusion_models.inputs(model.config, (4, 4))


@pytest.mark.slow
def test_recomputing_changes_nothing_and_bfloat16_is_near(small, folders):
    model, batch = small
    projection = np.random.default_rng(2).standard_normal((2, 4, 4, 4), np.float32)
    exact = both(model, *batch, projection=projection)
    again = both(load(folders("one block")[0], UNET, remat="full"), *batch, projection=projection)
    # The same operations, fused in other ways.
    assert deviation({"": again[0]}, {"": exact[0]}) < 5e-6
    assert deviation(again[1], exact[1]) < 2e-5
    rounded = load(folders("one block")[0], UNET, jnp.bfloat16, compute_dtype="bfloat16")
    found = nnx.jit(lambda model, batch: model(*batch))(rounded, batch)
    assert found.dtype == jnp.float32
    difference = np.abs(found - exact[0]).max() / np.abs(exact[0]).max()
    assert 1e-4 < difference < 0.1  # 8 bits of mantissa, through ten convolutions


@pytest.mark.slow
def test_lora_on_attention_and_convolutions_merges_to_the_same(small):
    model, batch = small
    targets = r"mid_block/(attentions|resnets/0)/.*(to_q|to_k|to_out|conv1|conv2)|up_blocks/.*/conv_shortcut"
    lj.verify(model, lj.lora(targets, rank=2), *batch).check()
    every = nnx.eval_shape(lambda: lj.lora("all-linear", rank=2).insert(model, jax.random.key(0)))
    adapted = {path.split("/lora/")[0] for path in partition.parameters(every) if "/lora/" in path}
    assert {path.rpartition("/")[2] for path in adapted} >= {
        "to_q",
        "to_out",
        "proj",
        "2",
        "linear_1",
    }


def test_wrong_inputs_are_refused_by_name(small):
    model, (sample, times, context) = small
    with pytest.raises(
        InputError, match=r"\(batch, height, width, 4\), channels last; got \(2, 4, 4, 3\)"
    ):
        model(sample[..., :3], times, context)
    with pytest.raises(InputError, match="needs a context"):
        model(sample, times)
    with pytest.raises(InputError, match=r"\(batch, length, 12\), as cross_attention_dim says"):
        model(sample, times, context[..., :5])
    for change, message in (
        ({"attention_head_dim": (2,)}, "attention_head_dim has 1 values, and block_out_channels has 2"),
        ({"norm_num_groups": 3}, "norm_num_groups 3 does not divide 8"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            UNetConfig(**{**UNETS["sd1"], **change})


@pytest.mark.slow
def test_a_train_step_is_lowered_without_weights():
    config = UNetConfig(**UNETS["sd1"], sample_size=8)
    mesh = make_mesh({}, jax.devices()[:1])
    step = denoising.build(config, lj.lora(r".*/to_[qkv]", rank=2), mesh, rows=2)
    base = partition.count(partition.parameters(in_shapes(UNet, config)))
    assert step.total - step.trainable == base and step.flops > 0
    lowered = step.function.lower(*step.arguments).as_text()
    assert "tensor<2x8x8x4xf32>" in lowered and "bf16" in lowered
