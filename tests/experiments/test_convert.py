"""The converter: files in and out, the base it is checked against, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs.glue import minilm
from experiments import glue
from experiments.convert import __main__, state_dicts
from experiments.convert.loralib import from_loralib, to_loralib
from lora_jax import adapters, partition, warm_start
from lora_jax.interop.loralib import from_state_dict
from lora_jax.models import hub

KEY = jax.random.key(0, impl="rbg")
SIZES = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 10,
}  # fmt: skip


def draw(shapes):
    random = np.random.default_rng(0)
    return {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.fixture
def state():
    """A RoBERTa state dict as the authors' script saves it."""
    shapes = {}
    for layer in range(2):
        for name in ("query", "value"):
            stem = f"roberta.encoder.layer.{layer}.attention.self.{name}"
            shapes |= {f"{stem}.lora_A": (2, 8), f"{stem}.lora_B": (8, 2)}
    head = {"dense.weight": (8, 8), "dense.bias": (8,), "out_proj.weight": (3, 8)}
    return draw(shapes | {f"classifier.{k}": v for k, v in {**head, "out_proj.bias": (3,)}.items()})


@pytest.fixture
def file(state, tmp_path):
    save_file(state, tmp_path / "state.safetensors")
    return tmp_path / "state.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Random base models: roberta, another of three layers, bert, gpt2."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    roberta = transformers.RobertaConfig(**SIZES, pad_token_id=1)
    gpt2 = transformers.GPT2Config(vocab_size=30, n_positions=10, n_embd=8, n_layer=2, n_head=2)
    models = {
        "roberta": transformers.RobertaModel(roberta),
        "wide": transformers.RobertaModel(
            transformers.RobertaConfig(**{**SIZES, "hidden_size": 16}, pad_token_id=1)
        ),
        "deep": transformers.RobertaModel(
            transformers.RobertaConfig(**{**SIZES, "num_hidden_layers": 3}, pad_token_id=1)
        ),
        "bert": transformers.BertModel(transformers.BertConfig(**SIZES)),
        "gpt2": transformers.GPT2LMHeadModel(gpt2),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return root


def trainable_of(folder, method):
    """The trainable leaves of a fresh model, and the fingerprint of its base, as a run has them."""
    model = hub.load_classifier(folder, hub.read_config(folder), 3, KEY)
    base = adapters.fingerprint(adapters.base_parameters(model, hub.HEAD))
    adapted = method.insert(model, KEY)
    return partition.split(adapted, method.labels(adapted))[1], base


# --- Files ----------------------------------------------------------------------------------------


def test_released_files_are_equal(real_data):
    folder = real_data / "adapters/microsoft_lora_roberta_base_mnli"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    first, second = (
        state_dicts.read(folder / f"roberta_base_lora_mnli{end}")
        for end in (".bin", ".safetensors")
    )
    assert first.keys() == second.keys() and len(first) == 52
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)


def test_torch_files_of_the_authors_gpt2_code(tmp_path):
    value = torch.arange(4.0).reshape(2, 2)
    state = {"x": value, "half": value.bfloat16(), "turned": value.T}
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")
    read = state_dicts.read(tmp_path / "model.pt")
    assert read.keys() == state.keys()
    assert {v.dtype for v in read.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(read["turned"], value.numpy().T)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "torch, old", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, how):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    path = tmp_path / "state.bin"
    content = {"classifier.dense.weight": torch.zeros(2, 2), "trap": Trap()}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"trap": Trap()}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"state\.bin cannot be read as tensors.*refused"):
        from_loralib(path, tmp_path / "adapter", alpha=16)
    assert not (tmp_path / "opened").exists() and not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("name", ["state.bin", "state.safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_broken_files(state, tmp_path, name, keep):
    path = tmp_path / name
    state_dicts.write(path, state, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name}(: found no readable| cannot be read)"):
        state_dicts.read(path)


@pytest.mark.parametrize(
    "content, message",
    [([1, 2], "holds a list, expected a state dict"), ({"step": 3}, r"\['step'\] are not tensors")],
)
def test_files_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match=rf"x\.bin.*{message}"):
        state_dicts.read(tmp_path / "x.bin")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bin does not exist"):
        from_loralib(tmp_path / "nowhere.bin", tmp_path / "adapter", alpha=16)


def test_torch_is_optional(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import raises ImportError
    folder = from_loralib(file, tmp_path / "adapter", alpha=16)
    to_loralib(folder, tmp_path / "back.safetensors")
    (tmp_path / "state.bin").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"pip install torch, or use \.safetensors"):
        state_dicts.read(tmp_path / "state.bin")
    with pytest.raises(ImportError, match="pip install torch"):
        to_loralib(folder, tmp_path / "back.bin")
    assert not (tmp_path / "back.bin").exists()


def test_torch_before_its_repair_is_refused(tmp_path, monkeypatch):
    """CVE-2025-32434: weights_only could be made to run code."""
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    (tmp_path / "state.bin").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"2\.5\.1.*2\.6 or newer"):
        state_dicts.read(tmp_path / "state.bin")


# --- There and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_round_trip_of_a_file(file, state, tmp_path, suffix):
    folder = from_loralib(file, tmp_path / "adapter", alpha=16)
    back = tmp_path / "new" / f"back{suffix}"
    settings = to_loralib(folder, back)
    arguments = {"r": 2, "lora_alpha": 16, "lora_dropout": 0.0}
    assert settings == {"attention.self.query": arguments, "attention.self.value": arguments}
    read = state_dicts.read(back)
    assert read.keys() == state.keys()
    assert all(read[key].tobytes() == state[key].tobytes() for key in state)
    assert [path.name for path in back.parent.iterdir()] == [back.name]
    if suffix == ".safetensors":
        with safe_open(back, framework="pt") as opened:
            assert json.loads(opened.metadata()["loralib"]) == settings


def test_factors_alone_keep_their_architecture(state, tmp_path):
    factors = {key: value for key, value in state.items() if "lora_" in key}
    save_file(factors, tmp_path / "x.safetensors")
    folder = from_loralib(tmp_path / "x.safetensors", tmp_path / "adapter", alpha=16)
    to_loralib(folder, tmp_path / "back.safetensors")
    assert load_file(tmp_path / "back.safetensors").keys() == factors.keys()


def test_nothing_is_overwritten(file, tmp_path):
    folder = from_loralib(file, tmp_path / "adapter", alpha=16)
    with pytest.raises(ValueError, match="adapter exists already and holds an adapter"):
        from_loralib(file, folder, alpha=8)
    with pytest.raises(ValueError, match=r"state\.safetensors exists already"):
        to_loralib(folder, file)
    with pytest.raises(ValueError, match=r"x\.npz must end in \.safetensors, \.bin or \.pt"):
        to_loralib(folder, tmp_path / "x.npz")


def test_errors_name_the_file(file, state, tmp_path):
    with pytest.raises(ValueError, match=r"state\.safetensors: alpha is needed"):
        from_loralib(file, tmp_path / "adapter", alpha=None)
    labels = {"before/bias": "bias"}
    leaf = {"before/bias": np.zeros(2, np.float32)}
    method = from_state_dict(state, alpha=1).method
    adapters.save_adapter(tmp_path / "odd", leaf, labels, method, "print")
    with pytest.raises(ValueError, match="odd: 1 leaves have no place.*before/bias"):
        to_loralib(tmp_path / "odd", tmp_path / "x.bin", architecture="roberta")


# --- The base -------------------------------------------------------------------------------------


def test_unknown_base(file, bases, tmp_path):
    """The factors can be read and can warm-start a run; onto a model only if somebody vouches."""
    adapter = adapters.load_adapter(from_loralib(file, tmp_path / "adapter", alpha=16))
    assert adapter.base == adapters.UNKNOWN_BASE
    assert adapter.notes["checkpoint"] == "state.safetensors" and len(adapter.notes["sha256"]) == 64
    trainable, base = trainable_of(bases / "roberta", adapter.method)
    message = r"mine was converted without its base.*again with --model.*dataclasses\.replace"
    with pytest.raises(ValueError, match=message):
        adapters.apply_adapter(adapter, trainable, base, "mine")
    vouched = dataclasses.replace(adapter, base=base)
    values = adapters.apply_adapter(vouched, trainable, base)
    assert all(np.array_equal(values[path], v) for path, v in adapter.values.items())
    started = warm_start.transfer_group(adapter, trainable, adapter.groups, "lora")
    path = "encoder/layers/block/attention/query/lora/b"
    np.testing.assert_array_equal(started[path], adapter.values[path])


def test_known_base(file, bases, tmp_path):
    folder = from_loralib(file, tmp_path / "adapter", alpha=16, model=str(bases / "roberta"))
    adapter = adapters.load_adapter(folder)
    trainable, base = trainable_of(bases / "roberta", adapter.method)
    assert adapter.base == base and adapter.notes["model"] == str(bases / "roberta")
    values = adapters.apply_adapter(adapter, trainable, base)
    assert values.keys() == adapter.values.keys()
    assert all(v.dtype == jnp.float32 for v in values.values())


def test_base_of_gpt2(bases, tmp_path):
    keys = [f"module.transformer.h.{layer}.attn.c_attn" for layer in range(2)]
    shapes = {f"{k}.lora_{s}": x for k in keys for s, x in (("A", (4, 8)), ("B", (16, 2)))}
    state = draw(shapes)
    torch.save(
        {"model_state_dict": {k: torch.tensor(v) for k, v in state.items()}}, tmp_path / "x.pt"
    )
    folder = from_loralib(
        tmp_path / "x.pt", tmp_path / "adapter", alpha=32, model=str(bases / "gpt2"), dropout=0.1
    )
    adapter = adapters.load_adapter(folder)
    decoder = hub.load_decoder(bases / "gpt2", hub.read_decoder_config(bases / "gpt2"))
    assert adapter.base == adapters.fingerprint(adapters.base_parameters(decoder, None))
    settings = to_loralib(folder, tmp_path / "back.safetensors", prefix="module.")
    enabled = {"r": 2, "lora_alpha": 32, "lora_dropout": 0.1, "enable_lora": [True, False, True]}
    assert settings == {"attn.c_attn": enabled}
    back = load_file(tmp_path / "back.safetensors")
    assert all(np.array_equal(back[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "model, message",
    [
        ("bert", r"state\.safetensors is of roberta, but .*bert holds a bert model"),
        ("gpt2", "model_type 'gpt2', expected one of bert"),
        ("deep", r"state\.safetensors: 4 factors are missing: roberta\.encoder\.layer\.2\."),
        ("wide", r"state\.safetensors: .*wide: .* has shape .*, the model needs"),
    ],
)
def test_another_base_is_refused(file, bases, tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        from_loralib(file, tmp_path / "adapter", alpha=16, model=str(bases / model))
    assert not (tmp_path / "adapter").exists()


def test_base_without_weights(file, bases, tmp_path):
    transformers.RobertaConfig(**SIZES, pad_token_id=1).save_pretrained(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        from_loralib(file, tmp_path / "adapter", alpha=16, model=str(tmp_path / "base"))


@pytest.mark.slow
def test_evaluation_of_a_converted_adapter(tiny_model, tiny_glue, tmp_path):
    """The adapter has the method that configs write, so the GLUE experiment takes it."""
    shapes = {"classifier.weight": (2, 32), "classifier.bias": (2,)}
    for layer in range(2):
        for name in ("query", "value"):
            stem = f"bert.encoder.layer.{layer}.attention.self.{name}"
            shapes |= {f"{stem}.lora_A": (8, 32), f"{stem}.lora_B": (32, 8)}
    save_file(draw(shapes), tmp_path / "x.safetensors")
    config = minilm.get_config("rte,lora")
    config.model.name, config.data.source = str(tiny_model), str(tiny_glue)
    config.data.max_length, config.eval_only = 48, True
    alpha = config.method.alpha
    for model in (str(tiny_model), None):
        config.adapter = str(tmp_path / f"adapter {model is None}")
        from_loralib(tmp_path / "x.safetensors", Path(config.adapter), alpha=alpha, model=model)
        if model:
            assert glue.evaluate(config, None).keys() == {"accuracy"}
        else:
            with pytest.raises(ValueError, match="converted without its base"):
                glue.evaluate(config, None)


# --- Command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["from_loralib"], ["to_loralib", "x"], ["help"]])
def test_wrong_commands(arguments, monkeypatch):
    unset = types.SimpleNamespace(checkpoint="x", output=None, adapter="x")
    monkeypatch.setattr(__main__, "FLAGS", unset, raising=False)
    message = "error: give one of eight commands: from_peft --adapter=FOLDER"
    with pytest.raises(SystemExit, match=message):
        __main__.main(["convert", *arguments])


def command(*arguments):
    return commands.run("experiments.convert", *arguments)


@pytest.mark.slow
def test_command_line(file, state, tmp_path):
    there = command("from_loralib", f"--checkpoint={file}", "--alpha=16", f"--output={tmp_path}/a")
    assert there.returncode == 0 and "base unknown: give --model" in there.stdout
    (tmp_path / "run").mkdir()
    (tmp_path / "a").rename(tmp_path / "run/adapter")  # a run folder is taken too
    back = command("to_loralib", f"--adapter={tmp_path}/run", f"--output={tmp_path}/b.safetensors")
    assert "attention.self.query: Linear(r=2, lora_alpha=16.0, lora_dropout=0.0)" in back.stdout
    assert load_file(tmp_path / "b.safetensors").keys() == state.keys()
