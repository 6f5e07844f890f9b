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

from lora_jax import partition
from lora_jax.models.diffusion.files import UNET, load
from lora_jax.models.tensors import published_name

# Largest deviations from PyTorch in float64, relative to the largest value of the tensor: 3e-6 and 4e-5 are
# reached, on a CPU in float32. Norms over few pixels lose digits: those of PyTorch in float32 are 3e-5 away.
OUTPUTS, GRADIENTS = 1e-5, 1e-4
TRAINED = ("sd1", "sd2")  # of which gradients are compared; each takes seconds to compile


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
