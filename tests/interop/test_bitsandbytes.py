"""Quantised decoders as bitsandbytes and transformers have them: the same bytes there and back."""

from __future__ import annotations

import json

import bitsandbytes_folders as folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_parity import LOGITS_TOLERANCE, VOCAB, difference, run, torch_logits
from flax import nnx
from random_models import from_shapes
from safetensors.numpy import load_file

import lora_jax
from lora_jax.data.batch import Inputs
from lora_jax.errors import InputError, InputTypeError, MissingFileError
from lora_jax.interop import bitsandbytes
from lora_jax.models import hub, saving
from lora_jax.models.model_files import WEIGHTS
from lora_jax.quantisation.four_bits import FourBits
from lora_jax.quantisation.layers import packed_weight, quantised_layers

bnb = pytest.importorskip("bitsandbytes")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CASES = [case for case in folders.CASES if case != "narrow"]


def load(folder, base_format="float"):
    return hub.load_decoder(folder, hub.read_decoder_config(folder, base_format=base_format))


def plain(case="nf4"):
    """Our model of the folder that the packed one was made of."""
    return load(folders.folder(case).with_name(f"{case}, plain"))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_transformers_is_written_again_byte_for_byte(tmp_path, case):
    folder = folders.folder(case)
    hub.save_decoder(tmp_path, load(folder, "stored"))
    theirs, ours = (load_file(path / WEIGHTS) for path in (folder, tmp_path))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if "bfloat16" in case and value.dtype == jnp.bfloat16:
            value = value.astype(np.float32)  # what is not packed is read in the type asked for
        assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype), name
        assert ours[name].tobytes() == value.tobytes(), name
    theirs, ours = (
        json.loads((path / "config.json").read_text())["quantization_config"]
        for path in (folder, tmp_path)
    )
    # transformers leaves the head out without being told.
    assert ours == {**theirs, "llm_int8_skip_modules": ["lm_head"]}


@pytest.mark.parametrize("form", ["nf4", FourBits("fp4", 32, double=False), "int8"])
def test_what_we_pack_is_loaded_by_transformers(tmp_path, form):
    model = lora_jax.quantise(plain(), format=form)
    hub.save_decoder(tmp_path, model)
    theirs = folders.load(tmp_path)
    layers = [m for m in theirs.modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert len(layers) == 14
    with torch.no_grad():
        assert difference(run(model), torch_logits(theirs)) < LOGITS_TOLERANCE
    again = load(tmp_path, "stored")
    for path, value in lora_jax.parameters(model).items():
        np.testing.assert_array_equal(lora_jax.parameters(again)[path], value, err_msg=path)


def test_layers_that_are_not_packed_are_named_in_config_json(tmp_path):
    model = lora_jax.quantise(plain(), r".*/(query|down)")
    hub.save_decoder(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    parts = (
        "mlp.gate_proj",
        "mlp.up_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "self_attn.v_proj",
    )
    named = [f"layers.{layer}.{part}" for layer in (0, 1) for part in parts]
    assert config["llm_int8_skip_modules"] == [*named, "lm_head"]
    theirs = folders.load(tmp_path)
    assert sum(type(m).__name__ == "Linear4bit" for m in theirs.modules()) == 4
    with torch.no_grad():
        assert difference(run(model), torch_logits(theirs)) < LOGITS_TOLERANCE


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A classifier of the BERT kind, as we have it."""
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=32, num_labels=3, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert")
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    key = jax.random.key(0)
    return hub.load_classifier(folder, hub.read_config(folder), 3, key, head="published")


def loaded(kind, folder, tokens):
    """What transformers' model of a folder gives, and how many of its layers are packed."""
    model = kind.from_pretrained(folder).eval()
    packed = [m for m in model.modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
    for module in packed:
        module.train()  # see `folders.load`
    with torch.no_grad():
        return model(torch.tensor(tokens)), len(packed)


TOKENS = np.arange(1, 13).reshape(2, 6)
TEXTS = Inputs(
    TOKENS, np.array([[1] * 6, [2] * 6]), np.zeros((2, 6), int) + np.arange(6), 0 * TOKENS
)


@pytest.mark.parametrize(
    ("form", "targets", "exclude", "count"),
    [
        ("nf4", "all-linear", None, 13),
        ("int8", "all-linear", ".*/down", 11),
        # The end of its name in the files is that of the other output's whole name.
        ("nf4", ".*/attention/output", None, 2),
    ],
)
def test_classifiers_and_encoders_packed_in_part_are_loaded_by_transformers(
    bert, tmp_path, form, targets, exclude, count
):
    model = lora_jax.quantise(bert, targets, form, exclude=exclude)
    hub.save_classifier(tmp_path / "classifier", model)
    kind = transformers.AutoModelForSequenceClassification
    result, found = loaded(kind, tmp_path / "classifier", TOKENS)
    logits = model(TEXTS, np.array([0, 1]), np.array([0, 0]))
    assert found == count and difference(logits, result.logits) < LOGITS_TOLERANCE
    hub.save_encoder(tmp_path / "encoder", lora_jax.quantise(model, "head/output", form))
    config = json.loads((tmp_path / "encoder/config.json").read_text())
    assert "quantization_config" in config and config["architectures"] == ["BertModel"]
    assert not [n for n in load_file(tmp_path / "encoder" / WEIGHTS) if "classifier" in n]
    result, found = loaded(transformers.AutoModel, tmp_path / "encoder", TOKENS)
    hidden = model.encoder(TEXTS)
    assert found == count and difference(hidden, result.last_hidden_state) < LOGITS_TOLERANCE


def test_a_packed_decoder_with_a_head_for_classes_is_loaded_by_transformers(tmp_path):
    folder = folders.folder("nf4").with_name("nf4, plain")
    config, key = hub.read_decoder_config(folder), jax.random.key(0)
    model = lora_jax.quantise(hub.load_decoder_classifier(folder, config, 3, key))
    hub.save_classifier(tmp_path, model, pad_token_id=0)
    kind = transformers.AutoModelForSequenceClassification
    result, found = loaded(kind, tmp_path, TOKENS)
    logits = model(TEXTS._replace(segments=0 * TOKENS + 1), np.array([0, 1]), np.array([5, 5]))
    assert found == 14 and difference(logits, result.logits) < LOGITS_TOLERANCE


@pytest.mark.wrong_types
def test_models_of_ones_own_have_no_published_layout(tmp_path):
    own = lora_jax.quantise(nnx.Linear(64, 8, rngs=nnx.Rngs(0)), nnx.Linear)
    for write in (bitsandbytes.state_dict, lambda m: hub.save_decoder(tmp_path / "x", m)):
        with pytest.raises(InputTypeError, match=r"model must be a Decoder.*Orbax.*quantised\.md"):
            write(own)


def test_a_folder_of_which_only_the_weights_were_written_is_no_model(tmp_path, monkeypatch):
    hub.save_decoder(tmp_path, plain())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(saving, "save", full)  # of the weights: nothing has changed
        with pytest.raises(OSError, match="No space"):
            hub.save_decoder(tmp_path, lora_jax.quantise(plain()))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(saving, "write_bytes", full)  # of config.json, after them
    with pytest.raises(OSError, match="No space"):
        hub.save_decoder(tmp_path, lora_jax.quantise(plain(), format="int8"))
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    with pytest.raises(MissingFileError, match=r"config\.json"):
        load(tmp_path, "stored")


def test_a_packed_head_is_one_there_too(tmp_path):
    model = lora_jax.quantise(plain(), ["all-linear", "lm_head"])
    hub.save_decoder(tmp_path, model)
    theirs = folders.load(tmp_path)
    assert type(theirs.lm_head).__name__ == "Linear4bit"
    with torch.no_grad():
        assert difference(run(model), torch_logits(theirs)) < LOGITS_TOLERANCE
    assert "lm_head" in quantised_layers(load(tmp_path, "stored"))


@pytest.mark.parametrize("double", [False, True])
def test_a_state_dict_is_read_by_quant_state(double):
    model = lora_jax.quantise(plain(), format=FourBits("nf4", double=double))
    tensors = bitsandbytes.state_dict(model)
    values = lora_jax.parameters(lora_jax.dequantise(model))[
        "layers/block/feed_forward/gate/kernel"
    ]
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.gate_proj.weight"
        parts = {k: torch.tensor(v) for k, v in tensors.items() if k.startswith(f"{name}.")}
        assert len(parts) == (5 if double else 3)
        state = bnb.functional.QuantState.from_dict(
            {k.removeprefix(f"{name}."): v for k, v in parts.items()}, torch.device("cpu")
        )
        found = bnb.functional.dequantize_4bit(torch.tensor(tensors[name]), state)
        np.testing.assert_array_equal(found.numpy().T, values[layer])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("code", ["nf4", "fp4"])
def test_a_layer_is_linear4bit(code, bias):
    """Outputs, and gradients of inputs: the order of summation differs, over 128 and 64 products."""
    rng = np.random.default_rng(0)
    kernel, x, g = (rng.normal(size=s).astype(np.float32) for s in ((128, 64), (9, 128), (9, 64)))
    theirs = bnb.nn.Linear4bit(128, 64, bias=bias, quant_type=code, compute_dtype=torch.float32)
    ours = from_shapes(lambda: nnx.Dict(layer=nnx.Linear(128, 64, use_bias=bias, rngs=nnx.Rngs(0))))
    ours["layer"].kernel[...] = jnp.asarray(kernel)
    values = {"weight": torch.tensor(kernel.T)}
    if bias:
        values["bias"] = torch.tensor(np.array(ours["layer"].bias[...]))
    theirs.load_state_dict(values)
    theirs = theirs.to("cpu")  # packs
    quantised = lora_jax.quantise(ours, "layer", FourBits(code))["layer"]
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given)
    expected.backward(torch.tensor(g))
    out, back = jax.vjp(lambda x: quantised(x), jnp.asarray(x))
    assert difference(out, expected) < 1e-6
    assert difference(back(jnp.asarray(g))[0], given.grad) < 1e-6
    packed = theirs.weight.data.numpy().reshape(64, -1)
    codes = packed_weight(quantised)[1].to_rows()[0]["codes"]
    np.testing.assert_array_equal(codes.reshape(64, -1), packed)


REFUSED = {
    "q4_0": (lambda m: lora_jax.quantise(m, format="q4_0"), r"Ggml.*int8 by rows only; lora_jax\.dequantise"),
    "int8 blocks": (lambda m: lora_jax.quantise(m, format="int8_blocks"), "packed as Int8.*block=64"),
    "table": (lambda m: lora_jax.quantise(m, "embeddings/token"), "embeddings/token is a packed table"),
    "two forms": (lambda m: lora_jax.quantise(lora_jax.quantise(m, ".*/query"), ".*/key", "int8"),
                  "one form"),
    "adapted": (lambda m: lora_jax.lora("all-linear", rank=2).insert(lora_jax.quantise(m), jax.random.key(0)),
                "not part of a published model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_bitsandbytes_has_not_is_refused(tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        hub.save_decoder(tmp_path / "new", make(plain()))
    assert not (tmp_path / "new").exists()


def test_a_state_dict_needs_a_quantised_model():
    with pytest.raises(InputError, match=r"no quantised layer; lora_jax\.quantise"):
        bitsandbytes.state_dict(plain())
