"""Folders of diffusers: read, written, read by diffusers; what is refused; counts of published models."""

from __future__ import annotations

import inspect
import json
import shutil

import diffusers
import diffusion_models
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from lora_jax import partition
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.models.diffusion import clip_config, unet_config, vae_config
from lora_jax.models.diffusion.clip import CLIPTextModel
from lora_jax.models.diffusion.components import TEXT_ENCODER, UNET, VAE
from lora_jax.models.diffusion.files import load, save_model, tensors
from lora_jax.models.diffusion.layers import in_shapes
from lora_jax.models.diffusion.names import module_path, published_module
from lora_jax.models.diffusion.pipeline import load_pipeline, save_pipeline
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.vae import AutoencoderKL

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tokenizer_files(folder):
    """CLIP's kind of tokenizer, of letters alone."""
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "ca", "cat</w>"]
    tokens = [*words, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return transformers.CLIPTokenizer.from_pretrained(str(folder), model_max_length=16)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a small Stable Diffusion, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "files").mkdir()
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusion_models.vae("sd"),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, **{**diffusion_models.UNETS["sd1"], "cross_attention_dim": 16}
        ),
        text_encoder=diffusion_models.clip("sd1"), tokenizer=tokenizer_files(folder / "files"),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "theirs")
    return folder / "theirs"


def weights(folder):
    return {
        path.relative_to(folder): load_file(path) for path in sorted(folder.rglob("*.safetensors"))
    }


def test_a_folder_of_diffusers_goes_there_and_back_bit_by_bit(pipeline, tmp_path):
    ours = load_pipeline(pipeline)
    assert ours.scheduler["prediction_type"] == "v_prediction"
    ids = ours.tokenizer("a cat", padding="max_length", max_length=8)["input_ids"]
    assert ids == [54, 26, 53, *[55] * 5]
    save_pipeline(tmp_path / "ours", ours)
    written, theirs = weights(tmp_path / "ours"), weights(pipeline)
    assert written.keys() == theirs.keys()
    for name, expected in theirs.items():
        # transformers 5 leaves out the prefix that the files of Stable Diffusion have.
        found = {key.removeprefix("text_model."): value for key, value in written[name].items()}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    first = diffusers.StableDiffusionPipeline.from_pretrained(pipeline)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(first, part).state_dict()
        found = getattr(again, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), part
    assert dict(again.scheduler.config)["prediction_type"] == "v_prediction"
    loaded = load_pipeline(tmp_path / "ours")
    assert loaded.unet.config == ours.unet.config and loaded.vae.config == ours.vae.config


@pytest.fixture
def unet_folder(pipeline, tmp_path):
    shutil.copytree(pipeline / "unet", tmp_path / "unet")
    return tmp_path / "unet"


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_variants_and_shards_are_read(unet_folder):
    values = load_file(unet_folder / WEIGHTS)
    expected = tensors(load(unet_folder, UNET), UNET)
    half = {name: value.astype(np.float16) for name, value in values.items()}
    (unet_folder / WEIGHTS).unlink()
    save_file(half, unet_folder / "diffusion_pytorch_model.fp16.safetensors")
    for variant in (None, "fp16"):
        found = tensors(load(unet_folder, UNET, variant=variant), UNET)
        assert all(np.array_equal(found[k], half[k].astype(np.float32)) for k in expected)
    shards = {"a.safetensors": list(values)[:9], "b.safetensors": list(values)[9:]}
    for name, keys in shards.items():
        save_file({key: values[key] for key in keys}, unet_folder / name)
    index = {"metadata": {}, "weight_map": {k: name for name, keys in shards.items() for k in keys}}
    (unet_folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    found = tensors(load(unet_folder, UNET, jnp.float32), UNET)
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
    with pytest.raises(MissingFileError, match=r"model\.int8\.safetensors is missing"):
        load(unet_folder, UNET, variant="int8")


def test_old_names_of_attention_in_autoencoders_are_read(pipeline, tmp_path):
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    shutil.copytree(pipeline / "vae", tmp_path / "vae")
    values = load_file(tmp_path / "vae" / WEIGHTS)
    renamed = {}
    for name, value in values.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[name] = value
    assert renamed.keys() != values.keys()
    save_file(renamed, tmp_path / "vae" / WEIGHTS)
    found = tensors(load(tmp_path / "vae", VAE), VAE)
    assert all(np.array_equal(found[key], value) for key, value in values.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'.*expected no such key"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types.*AttnDownBlock2D"),
        ({"attention_head_dim": 3}, "attention_head_dim 3, which is a number of heads, does not divide 8"),
        ({"_class_name": "UNet2DModel"}, "_class_name.*UNet2DModel.*expected UNet2DConditionModel"),
        ({"cross_attention_dim": 20}, r"misshapen.*attn2\.to_k\.weight is \(8, 16\).*asks for \(8, 20\)"),
        ({"layers_per_block": 2}, r"missing: down_blocks\.0\.attentions\.1"),
        ({"mid_block_type": None}, r"extra: mid_block\.attentions\.0"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_name(unet_folder, change, message):
    changed(unet_folder, **change)
    with pytest.raises(InputError, match=message):
        load(unet_folder, UNET)


def test_files_that_are_not_read_are_refused_with_the_remedy(unet_folder, pipeline, tmp_path):
    (unet_folder / WEIGHTS).rename(unet_folder / "diffusion_pytorch_model.bin")
    with pytest.raises(
        MissingFileError, match=r"holds diffusion_pytorch_model\.bin.*safe_serialization"
    ):
        load(unet_folder, UNET)
    with pytest.raises(MissingFileError, match="from_single_file"):
        load_pipeline(unet_folder)
    shutil.copytree(pipeline, tmp_path / "all")
    index = json.loads((pipeline / "model_index.json").read_text())
    for key, value in (("text_encoder_2", ["transformers", "CLIPTextModelWithProjection"]),
                       ("unet", ["diffusers", "UNet2DModel"])):  # fmt: skip
        (tmp_path / "all" / "model_index.json").write_text(json.dumps({**index, key: value}))
        with pytest.raises(FileError, match=f"{key}: found.*{value[1]}"):
            load_pipeline(tmp_path / "all")
    (tmp_path / "all" / "model_index.json").write_text(json.dumps(index))
    sizes = {**diffusion_models.UNETS["sd1"], "cross_attention_dim": 16, "in_channels": 9}
    inpainting = diffusers.UNet2DConditionModel(sample_size=8, **sizes)
    inpainting.save_pretrained(tmp_path / "all" / "unet")
    with pytest.raises(InputError, match="latent_channels is 4, and the U-Net's in_channels 9"):
        load_pipeline(tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "unet")
    with pytest.raises(MissingFileError, match=r"unet/config\.json is missing"):
        load_pipeline(tmp_path / "all")


@pytest.mark.parametrize(
    "component, of_library",
    [
        (UNET, diffusers.UNet2DConditionModel.__init__),
        (VAE, diffusers.AutoencoderKL.__init__),
        (TEXT_ENCODER, None),
    ],
)
def test_every_setting_of_the_libraries_is_known(component, of_library):
    if of_library is None:
        theirs = set(transformers.CLIPTextConfig().to_dict())
    else:
        theirs = set(inspect.signature(of_library).parameters) - {"self"}
    assert not theirs - component.keys.known()


@pytest.mark.parametrize(
    "size, counts",
    [
        ("stable-diffusion-v1-5", (859_520_964, 83_653_863, 123_060_480)),
        pytest.param(
            "stable-diffusion-2-1", (865_910_724, 83_653_863, 340_387_840), marks=pytest.mark.slow
        ),
    ],
)
def test_published_sizes_have_their_numbers_of_parameters(size, counts):
    configs = unet_config.SIZES[size], vae_config.SIZES[size], clip_config.SIZES[size]
    for model, config, count in zip(
        (UNet, AutoencoderKL, CLIPTextModel), configs, counts, strict=True
    ):
        assert partition.count(partition.parameters(in_shapes(model, config))) == count


def test_paths_are_the_names_of_diffusers():
    path = "down_blocks/0/attentions/0/transformer_blocks/0/attn1/to_out"
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert published_module(path) == name and module_path(name) == path
    for kind, make in (("unet", diffusion_models.unet), ("vae", diffusion_models.vae)):
        theirs = make("sd1" if kind == "unet" else "sd")
        names = {
            n for n, module in theirs.named_modules() if list(module.parameters(recurse=False))
        }
        assert {published_module(module_path(n)) for n in names} == names


def test_an_adapted_model_is_not_written(pipeline, tmp_path):
    import lora_jax as lj

    model = load(pipeline / "unet", UNET)
    adapted = lj.lora(r".*/(to_q|to_out)", rank=2).insert(model, nnx.Rngs(0).params())
    with pytest.raises(InputError, match="not part of a published model"):
        save_model(tmp_path, adapted)
