"""Styles of diffusers and kohya's scripts: theirs here, ours there, and back; diffusers is the reference."""

import copy
import json

import diffusers
import jax
import numpy as np
import peft
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

import lora_jax as lj
from experiments.convert import styles
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.interop import diffusion
from lora_jax.interop.diffusion.keys import Place, place
from lora_jax.models.diffusion import components, files
from tests import diffusion_models

UNET = ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv_shortcut"]
TEXT = ["q_proj", "out_proj", "fc1"]
TOKENS = np.random.default_rng(3).integers(0, 60, (2, 7))
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # float32, outputs of about 3


@pytest.fixture(scope="module", params=["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """Models of diffusers and transformers, and ours with the same weights."""
    folder = tmp_path_factory.mktemp("models")
    theirs = {
        "unet": diffusion_models.unet(request.param),
        "text_encoder": diffusion_models.clip(request.param),
    }
    ours = {}
    for name, model in theirs.items():
        model.save_pretrained(folder / name)
        ours[name] = files.load(folder / name, components.COMPONENTS[name])
    return theirs, ours


@pytest.fixture
def styled(pair):
    """The models of `pair`'s diffusers and transformers, which lose their styles when the test ends."""
    theirs, _ = pair
    yield copy.deepcopy(theirs)


def outputs(models):
    """What diffusers' models give."""
    sample, times, context = diffusion_models.inputs(models["unet"].config)
    with torch.no_grad():
        image = models["unet"](
            diffusion_models.channels_first(sample), torch.tensor(times), torch.tensor(context)
        ).sample
        text = models["text_encoder"](torch.tensor(TOKENS)).last_hidden_state
    return diffusion_models.channels_last(image), text.numpy()


@nnx.jit
def called(model, *inputs):
    return model(*inputs)


def our_outputs(models, adapters):
    styled = {name: lj.attach(models[name], adapters[name]) for name in adapters}
    unet, encoder = ({**models, **styled}[name] for name in ("unet", "text_encoder"))
    return called(unet, *diffusion_models.inputs(unet.config)), called(encoder, TOKENS)


def close(ours, theirs):
    for here, there in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(here, there, **TOLERANCE)


def test_a_style_of_diffusers_computes_the_same_here(pair, styled, tmp_path):
    _, ours = pair
    for name, targets, alpha in (("unet", UNET, 5.0), ("text_encoder", TEXT, 3.0)):
        config = peft.LoraConfig(
            r=2, lora_alpha=alpha, target_modules=targets, init_lora_weights=False,
            # Some larger than the matrices of 8 x 8 and, of convolutions, 72 x 16.
            rank_pattern={"to_q": 3, "to_v": 9, "conv1": 17}, alpha_pattern={"to_q": 4.0},
            use_rslora=name == "text_encoder",
        )  # fmt: skip
        peft.inject_adapter_in_model(config, styled[name])
        styled[name].peft_config = {"default": config}
    state = {
        f"{name}_lora_layers": diffusers.utils.convert_state_dict_to_diffusers(
            peft.get_peft_model_state_dict(model)
        )
        for name, model in styled.items()
    }
    metadata = {
        f"{name}_lora_adapter_metadata": model.peft_config["default"].to_dict()
        for name, model in styled.items()
    }
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, **state, **metadata)
    adapters = diffusion.read(tmp_path, ours)
    base, now = our_outputs(ours, {}), our_outputs(ours, adapters)
    assert min(np.max(np.abs(a - b)) for a, b in zip(base, now, strict=True)) > 0.1
    close(now, outputs(styled))


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_ours_compute_the_same_in_diffusers(pair, styled, tmp_path, form):
    _, ours = pair
    adapters = diffusion_models.random_adapters(ours)
    before = outputs(styled)
    path = diffusion.write(tmp_path / "style.safetensors", adapters, ours, form=form)
    diffusion_models.load_style(path, styled)
    after = outputs(styled)
    assert min(np.max(np.abs(a - b)) for a, b in zip(before, after, strict=True)) > 0.1
    close(our_outputs(ours, adapters), after)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_there_and_back(pair, tmp_path, form, dtype):
    _, ours = pair
    adapters = diffusion_models.random_adapters(ours, alpha=4.0)
    first = diffusion.write(tmp_path / "a.safetensors", adapters, ours, form=form, dtype=dtype)
    again = diffusion.read(first, ours)
    second = diffusion.write(tmp_path / "b.safetensors", again, ours, form=form, dtype=dtype)
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(two[name], value)
    if dtype == "float32" and form == "kohya":
        for name, adapter in adapters.items():
            for path, value in adapter.values.items():
                np.testing.assert_array_equal(again[name].values[path], value)


def test_a_folder_of_ours_holds_what_was_read(pair, tmp_path):
    _, ours = pair
    path = diffusion.write(
        tmp_path / "a.safetensors", diffusion_models.random_adapters(ours), ours, form="kohya"
    )
    adapter = diffusion.read(path, ours)["unet"]
    loaded = lj.load_adapter(adapter.save(tmp_path / "folder"))
    inputs = diffusion_models.inputs(ours["unet"].config)
    np.testing.assert_array_equal(
        called(lj.attach(ours["unet"], loaded), *inputs),
        called(lj.attach(ours["unet"], adapter), *inputs),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
         Place("unet", "mid_block_attentions_0_proj_in", "down")),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
         Place("text_encoder", "text_model_encoder_layers_0_mlp_fc1", "alpha")),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
         Place("text_encoder", "text_model_encoder_layers_0_mlp_fc1", "up")),
        ("unet.a.attn1.to_q.lora.down.weight", Place("unet", "a.attn1.to_q", "down")),
        ("unet.a.attn1.processor.to_out_lora.up.weight", Place("unet", "a.attn1.to_out.0", "up")),
        ("a.attn2.processor.to_k_lora.down.weight", Place("unet", "a.attn2.to_k", "down")),
        ("text_encoder.text_model.b.q_proj.lora_linear_layer.up.weight",
         Place("text_encoder", "text_model.b.q_proj", "up")),
        ("base_model.model.a.to_q.lora_A.default.weight", Place("unet", "a.to_q", "down")),
        ("unet.a.to_q.lora_B.weight", Place("unet", "a.to_q", "up")),
        ("unet.a.to_q.alpha", Place("unet", "a.to_q", "alpha")),
        ("lora_unet_a.hada_w1_a", None),
        ("unet.a.to_q.lora_magnitude_vector", None),
    ],
)  # fmt: skip
def test_names(name, expected):
    assert place(name) == expected


MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = f"{MODULE}.lora_down.weight", f"{MODULE}.lora_up.weight"
FACTORS = {DOWN: np.ones((2, 8), np.float32), UP: np.ones((8, 2), np.float32)}


def test_without_an_alpha_the_scale_is_one_and_a_window_of_one_may_be_left_out(pair, tmp_path):
    _, ours = pair
    wide = {name: value[:, :, None, None] for name, value in FACTORS.items()}
    save_file(wide, tmp_path / "a.safetensors")
    (adapter,) = diffusion.read(tmp_path / "a.safetensors", {"unet": ours["unet"]}).values()
    assert "rank=2, alpha=2.0" in str(adapter.method)
    assert {value.shape for value in adapter.values.values()} == {(8, 2), (2, 8)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({f"{MODULE}.hada_w1_a": FACTORS[DOWN]}, None, InputError, r"that is LoHa.*hada_w1_a"),
        ({**FACTORS, f"{MODULE}.dora_scale": FACTORS[UP]}, None, InputError, r"that is DoRA"),
        ({"lora_te2_a.alpha": np.ones((), np.float32)}, None, InputError, r"Stable Diffusion XL"),
        ({DOWN: FACTORS[DOWN]}, None, InputError, r"to_q has no factor up"),
        ({**FACTORS, UP: np.ones((9, 2), np.float32)}, None, InputError, r"\(9, 2\).*another version"),
        ({**FACTORS, UP: np.full((8, 2), np.nan, np.float32)}, None, FileError, r"not finite"),
        ({**FACTORS, UP: np.ones((8, 2), np.int32)}, None, FileError, r"type I32"),
        ({DOWN.replace("to_q", "to_z"): FACTORS[DOWN]}, None, InputError, r"to_z.* the unet has not"),
        ({**FACTORS, "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": np.ones((), np.float32)},
         None, InputError, r"adapts text_encoder, of which no model is given"),
        ({**FACTORS, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight":
          FACTORS[DOWN]}, None, InputError, r"is there twice"),
        ({**FACTORS, f"{MODULE}.lora_mid.weight": FACTORS[UP]}, None, InputError, r"a third factor"),
        ({**FACTORS, f"{MODULE}.alpha": np.ones(2, np.float32)}, None, InputError, r"expected one number"),
        ({**FACTORS, f"{MODULE}.alpha": np.zeros((), np.float32)}, None, InputError, r"expected .* above 0"),
        ({**FACTORS, UP: np.full((8, 2), 1e300)}, None, FileError, r"beyond float32"),
        ({}, None, InputError, r"a.safetensors holds no tensors"),
        (FACTORS, "{", FileError, r"lora_adapter_metadata"),
        (FACTORS, json.dumps({"unet.use_dora": True}), InputError, r"DoRA's magnitudes are not read"),
        (FACTORS, json.dumps({"unet.init_lora_weights": "pissa"}), InputError, r"'pissa' changed the base"),
        (FACTORS, json.dumps({"unet.lora_alpha": "4"}), InputError, r"lora_alpha='4': not of the type"),
    ],
)  # fmt: skip
def test_files_that_are_refused(pair, tmp_path, tensors, metadata, error, message):
    _, ours = pair
    header = {"lora_adapter_metadata": metadata} if metadata else None
    save_file(tensors, tmp_path / "a.safetensors", header)
    with pytest.raises(error, match=message):
        diffusion.read(tmp_path / "a.safetensors", {"unet": ours["unet"]})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lj.lora(r".*/to_q", rank=2, magnitude=True), r"by DoRAUpdate.*lora_jax.to_lora"),
        (lj.lora(r".*/to_q", rank=2, init="pissa"), r"LoRA's two factors alone"),
        (lj.lora(r".*/to_q", rank=2) + lj.norms(), r"trains .*norm.* besides"),
    ],
)
def test_adapters_that_a_style_file_cannot_hold(pair, tmp_path, method, message):
    _, ours = pair
    model = ours["unet"]
    inserted = method.insert(model, jax.random.key(0))
    lj.save(tmp_path / "adapter", inserted, method, model)
    adapter = lj.load_adapter(tmp_path / "adapter")
    with pytest.raises(InputError, match=message):
        diffusion.write(tmp_path / "a.safetensors", {"unet": adapter}, ours)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_values_too_large_for_16_bits_are_refused(pair, tmp_path):
    _, ours = pair
    adapters = {"unet": diffusion_models.random_adapters(ours)["unet"]}
    path, value = next(iter(adapters["unet"].values.items()))
    adapters["unet"].values[path] = np.full_like(value, 1e5)
    with pytest.raises(InputError, match="a factor is too large for float16; write it in float32"):
        diffusion.write(tmp_path / "a.safetensors", adapters, ours, dtype="float16")
    written = diffusion.write(tmp_path / "a.safetensors", adapters, ours, dtype="bfloat16")
    assert len(load_file(written)) == len(adapters["unet"].values)


def test_the_command_reads_and_writes_styles(pair, tmp_path, capsys):
    _, ours = pair
    for name, model in ours.items():
        files.save_model(tmp_path / "sd" / name, model)
    style = diffusion.write(
        tmp_path / "a.safetensors", diffusion_models.random_adapters(ours), ours, form="kohya"
    )
    adapters = styles.from_style(style, tmp_path / "ours", str(tmp_path / "sd"))
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == sorted(adapters)
    with pytest.raises(InputError, match="is not empty"):
        styles.from_style(style, tmp_path / "ours", str(tmp_path / "sd"))
    again = tmp_path / "b.safetensors"
    settings = {"form": "kohya", "dtype": "float32"}
    parts = styles.to_style(tmp_path / "ours", again, str(tmp_path / "sd"), **settings)
    assert parts == ["unet", "text_encoder"]
    one, two = load_file(style), load_file(again)
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    styles.to_style(tmp_path / "ours/unet", again, str(tmp_path / "sd"), **settings)
    assert len(load_file(again)) < len(one)
    with pytest.raises(MissingFileError, match="holds no adapter of Stable Diffusion"):
        styles.to_style(tmp_path / "sd", again, str(tmp_path / "sd"), **settings)
