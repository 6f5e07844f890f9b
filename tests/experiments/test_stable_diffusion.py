"""`experiments.diffusion` on a tiny random Stable Diffusion, in a folder that diffusers wrote."""

import copy
import json
import string

import commands
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
from experiments.diffusion.drawing import Drawing
from lora_jax.adapters import load_adapter
from lora_jax.interop import diffusion

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


def test_pictures_with_a_style_are_those_of_diffusers(pipeline, tmp_path):
    """The command, with a style on U-Net and text encoder at a weight, and diffusers with the same file."""
    theirs, folder = pipeline
    base = bases.read(str(folder), 16, "float32")
    models = {"unet": base.model, "text_encoder": base.text_encoder}
    adapters = diffusion_models.random_adapters(models, alpha=2.0)
    style = diffusion.write(tmp_path / "style.safetensors", adapters, models, form="kohya")
    flags = {
        "base": folder, "captions": f'"a, b",{PROMPT}', "adapters": f"mine={style}", "weights": 0.7,
        "count": 2, "steps": 3, "guidance": 7.5, "seed": 3, "size": 16, "output": tmp_path / "a.png",
    }  # fmt: skip
    arguments = (f"--{name}={value}" for name, value in flags.items())
    done = commands.run("experiments.sample_images", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"4 pictures: {tmp_path / 'a.png'}\n"
    sheet = np.asarray(Image.open(tmp_path / "a.png"), np.float64)
    assert sheet.shape == (2 * 33 + 1, 2 * 33 + 1, 3)  # twice as large, with lines between them
    found = [sheet[top : top + 32 : 2, left : left + 32 : 2] for top in (1, 34) for left in (1, 34)]

    styled = diffusers.StableDiffusionPipeline(
        **{**theirs.components, **{name: copy.deepcopy(getattr(theirs, name)) for name in models}},
        requires_safety_checker=False,
    )
    styled.set_progress_bar_config(disable=True)
    diffusion_models.load_style(style, {name: getattr(styled, name) for name in models})
    for name in models:
        diffusers.utils.peft_utils.scale_lora_layers(getattr(styled, name), 0.7)
    noise = torch.tensor(np.moveaxis(Drawing("ddim", 3, 7.5, 3).noise(base, 4), -1, 1))
    plain, expected = (
        255 * pipe(
            ["a, b", "a, b", PROMPT, PROMPT], height=16, width=16, num_inference_steps=3,
            guidance_scale=7.5, latents=noise.clone(), output_type="np",
        ).images
        for pipe in (theirs, styled)
    )  # fmt: skip
    assert np.abs(plain - expected).mean() > 5
    # Half of one of 256 levels is rounding; three guided steps and the autoencoder agree to a tenth of one.
    np.testing.assert_allclose(found, expected, atol=0.6)


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
