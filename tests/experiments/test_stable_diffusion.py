"""`experiments.diffusion` on a tiny random Stable Diffusion, in a folder that diffusers wrote."""

import json
import string

import diffusers
import diffusion_models
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from configs.diffusion import stable_diffusion_lora
from experiments.diffusion import bases, tasks
from experiments.diffusion.drawing import Drawing, draw
from lora_jax.adapters import load_adapter

PROMPT = "a cat"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The pipeline of diffusers, and its folder."""
    folder = tmp_path_factory.mktemp("sd")
    place = folder / "tokenizer"
    place.mkdir()
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    (place / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(place), model_max_length=8)
    sizes = {**diffusion_models.UNETS["sd1"], "cross_attention_dim": 16}
    unet = diffusers.UNet2DConditionModel(sample_size=8, **sizes)
    made = diffusers.StableDiffusionPipeline(
        vae=diffusion_models.vae("sd"), text_encoder=diffusion_models.clip("sd1"),
        tokenizer=tokenizer, unet=diffusion_models.randomised(unet, 0),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder)
    return made, folder


def test_a_picture_is_that_of_diffusers(pipeline):
    theirs, folder = pipeline
    base = bases.read(str(folder), 16, "float32")
    how = Drawing("ddim", 3, 7.5, 0)
    found = draw(base, base.model, [PROMPT], how)
    noise = torch.tensor(np.moveaxis(how.noise(base, 1), -1, 1))
    expected = theirs(
        PROMPT, height=16, width=16, num_inference_steps=3, guidance_scale=7.5, latents=noise,
        output_type="np",
    ).images  # fmt: skip
    assert expected.std() > 0.01
    # Three guided steps and the autoencoder, each of which agrees to about 1e-5.
    np.testing.assert_allclose(np.clip(found / 2 + 0.5, 0, 1), expected, atol=2e-3)


def test_lora_learns_pictures_with_captions(pipeline, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (20, 16), "red" if name == "a" else "blue").save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {name}")
    config = stable_diffusion_lora.get_config("subject")
    config.samples.update({"steps": 2, "count": 1, "captions": (PROMPT,)})
    config.prior.update({"count": 2, "captions": ("a dog",)})
    config.update({"base": str(pipeline[1]), "epochs": 1})
    config.data.update({"source": str(pictures), "size": 16, "repeats": 2})
    (record,) = tasks.adapt_all(config, tmp_path / "run").values()
    assert record["steps"] == 4 and record["pictures"] == 2
    adapter = load_adapter(tmp_path / "run")
    # Query, key, value and output of two attentions, in one block down, two up and the middle.
    assert len(adapter.values) == 2 * 4 * 2 * 4
    assert any(np.abs(v).max() > 0 for path, v in adapter.values.items() if path.endswith("b"))
    assert jnp.isfinite(record["best"]["loss"]["mean"])
