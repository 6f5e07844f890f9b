"""Autoencoder and text encoder of Stable Diffusion against PyTorch `diffusers` and `transformers`."""

from __future__ import annotations

import diffusion_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from deviations import deviation
from diffusion_models import CLIPS, VAES, channels_first, channels_last
from flax import nnx

from lora_jax.errors import InputError
from lora_jax.models.diffusion.components import TEXT_ENCODER, VAE
from lora_jax.models.diffusion.files import load

# Relative to the largest value, from PyTorch in float64: float32 through some tens of operations.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The model of a variant by PyTorch, and ours read from its folder."""
    models = {}

    def make(kind, variant):
        if (kind, variant) not in models:
            make, component = {
                "vae": (diffusion_models.vae, VAE), "clip": (diffusion_models.clip, TEXT_ENCODER),
            }[kind]  # fmt: skip
            theirs, folder = make(variant), tmp_path_factory.mktemp(kind)
            theirs.save_pretrained(folder)
            models[kind, variant] = theirs, load(folder, component), folder
        return models[kind, variant]

    return make


@pytest.mark.parametrize("variant", VAES)
def test_encoding_and_decoding_equal_diffusers(variant, made):
    theirs, ours, _ = made("vae", variant)
    config, rng = ours.config, np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 12, config.in_channels), np.float32)
    z = rng.standard_normal((2, 3, 2, config.latent_channels), np.float32)
    theirs = theirs.double()
    with torch.no_grad():
        expected = theirs.encode(channels_first(images).double()).latent_dist
        image = theirs.decode(channels_first(z).double()).sample
    # Eagerly: most operations are compiled once for all variants.
    mean, log_variance = ours.encode(images)
    assert deviation({"": mean}, {"": channels_last(expected.mean)}) < CLOSE
    assert deviation({"": log_variance}, {"": channels_last(expected.logvar)}) < CLOSE
    decoded = ours.decode(z)
    assert decoded.shape[1:3] == (3 * config.factor, 2 * config.factor)
    assert deviation({"": decoded}, {"": channels_last(image)}) < CLOSE


def test_latent_images_are_drawn_and_scaled(made):
    """They have the mean and the variance of the encoding, and decode to the images of the encoding."""
    _, ours, _ = made("vae", "one block")
    images = np.random.default_rng(0).standard_normal((1, 2, 2, 1)).astype(np.float32)
    mean, log_variance = (np.asarray(part) for part in ours.encode(images))
    scale = ours.config.scaling_factor
    np.testing.assert_allclose(ours.to_latents(images), scale * mean, rtol=1e-6)
    np.testing.assert_array_equal(ours.to_images(scale * mean), ours.decode(mean))
    many = np.asarray(ours.to_latents(np.repeat(images, 1000, axis=0), jax.random.key(0))) / scale
    deviations = np.exp(log_variance / 2)
    # Of 1,000 draws: five times the standard errors of a mean and of a standard deviation.
    assert np.abs((many.mean(axis=0) - mean[0]) / deviations[0]).max() < 5 / 1000**0.5
    assert np.abs(many.std(axis=0) / deviations[0] - 1).max() < 5 / 2000**0.5


@pytest.mark.parametrize("variant", CLIPS)
def test_hidden_states_equal_transformers(variant, made):
    theirs, ours, _ = made("clip", variant)
    tokens = np.random.default_rng(0).integers(0, 60, (3, 11)).astype(np.int32)
    with torch.no_grad():
        expected = theirs.double()(torch.tensor(tokens)).last_hidden_state.numpy()
    found = np.asarray(nnx.jit(lambda model, tokens: model(tokens))(ours, tokens))
    assert deviation({"": found}, {"": expected}) < CLOSE


@pytest.mark.slow
def test_bfloat16_is_near_float32(made):
    for kind, component in (("vae", VAE), ("clip", TEXT_ENCODER)):
        _, exact, folder = made(kind, "short" if kind == "clip" else "one block")
        rounded = load(folder, component, jnp.bfloat16, compute_dtype="bfloat16")
        if kind == "vae":
            z = np.random.default_rng(0).standard_normal((2, 2, 2, 3), np.float32)
            pair = exact.decode(z), rounded.decode(z)
        else:
            tokens = np.arange(22, dtype=np.int32).reshape(2, 11)
            pair = exact(tokens), rounded(tokens)
        assert pair[1].dtype == jnp.float32
        difference = np.abs(pair[0] - pair[1]).max() / np.abs(pair[0]).max()
        assert 1e-4 < difference < 0.1  # 8 bits of mantissa, through some layers


def test_wrong_inputs_are_refused_by_name(made):
    _, vae, _ = made("vae", "one block")
    with pytest.raises(InputError, match=r"multiples of 1; got \(1, 6, 4, 3\)"):
        vae.encode(np.zeros((1, 6, 4, 3), np.float32))
    with pytest.raises(InputError, match="channels last"):
        vae.decode(np.zeros((1, 3, 4, 4), np.float32))
    _, clip, _ = made("clip", "short")
    with pytest.raises(InputError, match="12 tokens, and max_position_embeddings"):
        clip(np.zeros((1, 12), np.int32))
