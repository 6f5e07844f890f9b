"""PEFT's adapters, both ways, against PEFT itself on small random models."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import peft
import pytest
import torch
from ml_dtypes import bfloat16
from peft_models import (
    CONFIG,
    ENCODERS,
    WEIGHTS,
    assert_same_tensors,
    logits_of,
    model_of,
    our_logits,
    read_base,
    settings_of,
    trained,
    without_note,
)
from safetensors.numpy import load_file, save_file

import lora_jax
from experiments.convert import __main__
from experiments.convert.peft import from_peft, to_peft
from lora_jax import adapters, partition

pytestmark = pytest.mark.usefixtures("read_once")


@dataclasses.dataclass
class Case:
    """A model, whether it has a head, and settings of PEFT."""

    model: str
    with_head: bool
    settings: dict

    def __str__(self):
        named = ",".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.model}{' with head' if self.with_head else ''} {named}"


def case(model, with_head=False, **settings):
    return pytest.param(Case(model, with_head, settings), id=str(Case(model, with_head, settings)))


CASES = [
    case("bert", True),
    case("roberta", True),
    case("gpt2", True),
    case("llama", True),
    case("bert"),
    case("bert", True, bias="all", use_rslora=True, modules_to_save=["classifier", "pooler"]),
    case("roberta", True, bias="lora_only", use_dora=True, target_modules="all-linear"),
    case("roberta", True, target_modules=["word_embeddings", "key"], lora_dropout=0.1),
    case("bert", True, target_modules=["query", "dense"], layers_to_transform=[1]),
    case(
        "bert", True, trainable_token_indices=[3, 9], exclude_modules=["layer.0.attention.self.key"]
    ),
    case("deberta", True, modules_to_save=["classifier", "pooler"]),
    case("deberta"),
    case(
        "deberta",
        True,
        target_modules="all-linear",
        bias="lora_only",
        use_dora=True,
        modules_to_save=["classifier", "pooler"],
    ),
    case(
        "deberta", target_modules=["query_proj", "key_proj", "rel_embeddings", "dense"], bias="all"
    ),
    case("electra", True, target_modules=["embeddings_project", "query", "dense"], bias="all"),
    case(
        "distilbert",
        True,
        target_modules=["q_lin", "lin2"],
        use_dora=True,
        modules_to_save=["pre_classifier", "classifier"],
    ),
    case("gpt2", bias="all", use_dora=True),
    case("gpt2", lora_bias=True, target_modules=["c_attn", "mlp.c_proj"]),
    case("gpt2", target_modules=["wte", "c_attn"]),
    case("gpt2", init_lora_weights="pissa", r=2),  # where singular values are well apart
    case(
        "llama",
        rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 1},
        alpha_pattern={"v_proj": 5, "layers.0.*q_proj": 7},
        use_rslora=True,
    ),
    case("llama", target_modules=["embed_tokens", "lm_head", "q_proj"], use_dora=True),
    case("llama", modules_to_save=["lm_head", "layers.1.input_layernorm"]),
    case("llama", trainable_token_indices={"embed_tokens": [3, 9], "lm_head": [4]}),
    case(
        "llama", target_modules=["v_proj"], target_parameters=["q_proj.weight", "down_proj.weight"]
    ),
    case("llama", init_lora_weights="olora", target_modules=r".*\.1\..*(q|up)_proj"),
    case("tied", target_modules=["embed_tokens"]),
    case("tied", target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    case("tied", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    case("tied", trainable_token_indices=[3, 9]),
    case("qwen2", bias="all", target_modules=["q_proj", "o_proj", "down_proj"]),
]


@pytest.mark.parametrize("case", CASES)
def test_both_ways(case, bases, tmp_path):
    """PEFT's logits here, its bytes and settings back, and our logits in PEFT with new settings."""
    theirs, base = trained(case.model, case.with_head, **case.settings), bases / case.model
    expected = logits_of(theirs)
    assert np.abs(expected - logits_of(model_of(case.model, case.with_head))).max() > 1e-2
    theirs.save_pretrained(tmp_path / "peft")
    from_peft(str(tmp_path / "peft"), tmp_path / "ours", model=str(base))
    assert np.abs(our_logits(tmp_path / "ours", base, case.model) - expected).max() < 1e-5
    to_peft(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(tmp_path / "peft", tmp_path / "back")
    assert settings_of(tmp_path / "peft") == settings_of(tmp_path / "back")
    without_note(tmp_path / "ours", tmp_path / "own")
    to_peft(tmp_path / "own", tmp_path / "new", model=str(base))
    again = peft.PeftModel.from_pretrained(model_of(case.model, case.with_head), tmp_path / "new")
    assert np.abs(logits_of(again) - expected).max() < 1e-5


FUSED = {"parts": ("q", "v"), "fused": ("q", "k", "v")}
OURS = [
    ("gpt2", False, lora_jax.lora("qkv", rank=3, alpha=5, **FUSED)),
    ("gpt2", False, lora_jax.lora("qkv", rank=3, scaling="alpha/sqrt(r)", magnitude=True, **FUSED)),
    ("gpt2", False, lora_jax.lora(["qkv", "embeddings/token"], rank=3, b_bias=False)),
    ("gpt2", False, lora_jax.lora("qkv", rank=3, b_bias=True, **FUSED)),
    ("gpt2", True, lora_jax.lora("all-linear", rank=3, head="head/.*")),
    ("llama", False, lora_jax.lora({"query": {"scaling": "alpha/sqrt(r)"}, "up": {"rank": 2}}, rank=3)),
    (
        "bert", True,
        lora_jax.lora({"last_1/block/attention/query": {}, "feed_forward/up": {"rank": 2}}, rank=3,
                      cut=[1], bias="all", head="head/.*"),
    ),
    (
        "deberta", True,
        lora_jax.lora(".*/attention/(query|value)", rank=3, bias="all", head="head/.*")
        + lora_jax.leaves("encoder/norm/.*"),
    ),
    ("tied", False, lora_jax.lora("query", rank=2) + lora_jax.leaves("embeddings/.*|norm/scale")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "with_head", "method"),
    [pytest.param(*row, id=f"{row[0]} {row[2].name} {i}") for i, row in enumerate(OURS)],
)
def test_adapters_trained_here(name, with_head, method, bases, tmp_path):
    folder = trained_here(name, with_head, method, bases, tmp_path / "ours")
    expected = our_logits(folder, bases / name, name)
    to_peft(folder, tmp_path / "peft")
    model = peft.PeftModel.from_pretrained(model_of(name, with_head), tmp_path / "peft")
    assert np.abs(logits_of(model) - expected).max() < 1e-5
    from_peft(str(tmp_path / "peft"), tmp_path / "again", model=str(bases / name))
    assert np.abs(our_logits(tmp_path / "again", bases / name, name) - expected).max() < 1e-5
    to_peft(tmp_path / "again", tmp_path / "back")
    assert_same_tensors(tmp_path / "peft", tmp_path / "back")


def trained_here(name, with_head, method, bases, folder):
    """An adapter folder with random leaves."""
    base = read_base(bases / name, 6, decoder_head=with_head and name not in ENCODERS)
    model = method.insert(base.model, jax.random.key(0))
    labels = method.labels(model)
    _, trainable, _ = partition.split(model, labels)
    rng = np.random.default_rng(0)
    moved = {
        path: np.asarray(value) + 0.2 * rng.normal(size=value.shape).astype(np.float32)
        for path, value in trainable.items()
    }
    notes = {"model": str(bases / name)}
    return adapters.save_adapter(folder, moved, labels, method, base.fingerprint(), notes)


def test_what_changed_has_new_settings(bases, tmp_path):
    """Factors of PiSSA keep their start, and go back as PiSSA's: PEFT takes the start off again."""
    theirs = trained("llama", False, init_lora_weights="pissa")
    theirs.save_pretrained(tmp_path / "peft")
    folder = from_peft(str(tmp_path / "peft"), tmp_path / "ours", model=str(bases / "llama"))
    adapter = adapters.load_adapter(folder)
    values = {path: value * np.float32(1.01) for path, value in adapter.values.items()}
    adapters.save_adapter(
        tmp_path / "moved", values, adapter.groups, adapter.method, adapter.base, adapter.notes,
        state=adapter.state,
    )  # fmt: skip
    config = to_peft(tmp_path / "moved", tmp_path / "new")
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (3, 8, "pissa")
    again = peft.PeftModel.from_pretrained(model_of("llama", False), tmp_path / "new")
    expected = our_logits(tmp_path / "moved", bases / "llama", "llama")
    assert np.abs(logits_of(again) - expected).max() < 1e-5


# --- Folders as they are found --------------------------------------------------------------------


def rewritten(folder, new, tensors=None, **settings):
    """A copy of a folder with other tensors or settings."""
    shutil.copytree(folder, new)
    if tensors is not None:
        save_file(tensors, new / WEIGHTS, {"format": "pt"})
    (new / CONFIG).write_text(json.dumps({**settings_of(folder), **settings}))
    return new


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of PEFT: a BERT with a head and a Llama."""
    root = tmp_path_factory.mktemp("saved")
    trained("bert", True).save_pretrained(root / "bert")
    trained("llama", False).save_pretrained(root / "llama")
    return root


def test_a_plain_encoder_with_a_head_of_six_classes(saved, bases, tmp_path):
    tensors = {
        k.replace("model.bert.", "model."): v
        for k, v in load_file(saved / "bert" / WEIGHTS).items()
    }
    there = rewritten(saved / "bert", tmp_path / "peft", tensors)
    from_peft(str(there), tmp_path / "ours", model=str(bases / "bert"))
    expected = logits_of(trained("bert", True))
    assert expected.shape == (2, 6)
    assert np.abs(our_logits(tmp_path / "ours", bases / "bert", "bert") - expected).max() < 1e-5
    to_peft(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(there, tmp_path / "back")


def test_settings_and_types_of_other_programs(saved, bases, tmp_path):
    """Few keys, which is all that PEFT needs, bfloat16, and layers of several types."""
    tensors = load_file(saved / "llama" / WEIGHTS)
    mixed = {k: v.astype(bfloat16 if ".layers.1." in k else np.float16) for k, v in tensors.items()}
    there = rewritten(saved / "llama", tmp_path / "peft", mixed)
    few = {"peft_type": "LORA", "r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (there / CONFIG).write_text(json.dumps(few))
    from_peft(str(there), tmp_path / "ours", model=str(bases / "llama"))
    to_peft(tmp_path / "ours", tmp_path / "back")
    assert_same_tensors(there, tmp_path / "back")
    assert settings_of(tmp_path / "back") == few


def test_a_second_adapter_in_a_subfolder(saved, bases, tmp_path):
    shutil.copytree(saved / "llama", tmp_path / "several/second")
    with pytest.raises(FileNotFoundError, match=r"adapters in second: name one, --subfolder=NAME"):
        from_peft(str(tmp_path / "several"), tmp_path / "ours", model=str(bases / "llama"))
    from_peft(
        str(tmp_path / "several"), tmp_path / "ours", model=str(bases / "llama"), subfolder="second"
    )
    assert adapters.load_adapter(tmp_path / "ours").notes["source"] == "peft"


def test_torch_files_and_the_base_that_the_adapter_names(saved, bases, tmp_path):
    tensors = load_file(saved / "llama" / WEIGHTS)
    there = rewritten(
        saved / "llama", tmp_path / "peft", base_model_name_or_path=str(bases / "llama")
    )
    (there / WEIGHTS).unlink()
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, there / "adapter_model.bin")
    from_peft(str(there), tmp_path / "ours")
    expected = logits_of(trained("llama", False))
    assert np.abs(our_logits(tmp_path / "ours", bases / "llama", "llama") - expected).max() < 1e-5


# --- What is refused ------------------------------------------------------------------------------

SETTINGS = [
    ({"peft_type": "OFT"}, r"peft_type is 'OFT'.*convert_to_lora"),
    ({"new_key": 1}, r"unknown keys new_key.*--ignore=new_key"),
    ({"use_qalora": True}, r"use_qalora=True: QA-LoRA pools.*Merge it in PEFT"),
    ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\].*merge_and_unload"),
    ({"layer_replication": [[0, 2], [1, 2]]}, r"layer_replication=.*several times"),
    ({"init_lora_weights": "pissa_niter_1"}, r"pissa_niter_1.*path_initial_model_for_weight_conv"),
    ({"init_lora_weights": "corda"}, r"corda.*path_initial_model_for_weight_conversion"),
    ({"r": 4}, r"factors are of rank 3, r and rank_pattern say 4"),
    ({"target_modules": ["q_proj"]}, r"factors of model.layers.0.self_attn.v_proj.*does not name"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"names 2 modules without factors"),
    ({"use_dora": True}, r"use_dora=True and lora_bias=False, but its tensors are \['a', 'b'\]"),
    ({"modules_to_save": ["lm_head"]}, r"1 parameters that train are not in the file: lm_head.weight"),
    ({"lora_alpha": "8"}, r"lora_alpha='8': not of the type"),
    ({"rank_pattern": {"(": 3}}, r"rank_pattern rule .* is no regular expression"),
    ({"trainable_token_indices": [1]}, r"no trained rows"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    SETTINGS,
    ids=[next(iter(s)) + str(i) for i, (s, _) in enumerate(SETTINGS)],
)
def test_settings_without_a_counterpart(settings, message, saved, bases, tmp_path):
    there = rewritten(saved / "llama", tmp_path / "peft", **settings)
    with pytest.raises(ValueError, match=message):
        from_peft(str(there), tmp_path / "ours", model=str(bases / "llama"))
    assert not (tmp_path / "ours").exists()


Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, TABLE = f"{Q}.lora_A.weight", "base_model.model.model.embed_tokens.weight"
TENSORS = [
    (lambda t: {**t, "base_model.model.qa_outputs.weight": t[A]}, r"qa_outputs.*none for tokens or spans"),
    (lambda t: {**t, f"{Q}.lora_E": t[A]}, r"no place in a llama model here: .*lora_E"),
    (lambda t: {k: v for k, v in t.items() if k != f"{Q}.lora_B.weight"}, r"q_proj lacks lora_B"),
    (lambda t: {k.removeprefix("base_model."): v for k, v in t.items()}, r"do not begin with base_model"),
    (lambda t: {**t, A: t[A][:, :8]}, r"the base needs \(r, 16\)"),
    (lambda t: {**t, TABLE: np.zeros((41, 16), np.float32)}, r"vocabulary was resized"),
    (lambda t: {**t, A: t[A] * np.float32("nan")}, r"not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TENSORS)
def test_tensors_without_a_counterpart(change, message, saved, bases, tmp_path):
    there = rewritten(
        saved / "llama", tmp_path / "peft", change(load_file(saved / "llama" / WEIGHTS))
    )
    with pytest.raises(ValueError, match=message):
        from_peft(str(there), tmp_path / "ours", model=str(bases / "llama"))


def test_a_head_for_tokens(bases, saved, tmp_path):
    """It has the names of one for whole texts, and another place in the model."""
    there = rewritten(saved / "bert", tmp_path / "peft", task_type="TOKEN_CLS")
    with pytest.raises(ValueError, match=r"the head \(classifier.* is for every token.*--ignore="):
        from_peft(str(there), tmp_path / "ours", model=str(bases / "bert"))
    from_peft(str(there), tmp_path / "ours", model=str(bases / "bert"), ignore=["classifier.*"])
    adapter = adapters.load_adapter(tmp_path / "ours")
    assert adapter.method.head is None and len(adapter.values) == 4


def test_the_commands(saved, bases, tmp_path, monkeypatch, capsys):
    flags = {"model": str(bases / "bert"), "subfolder": "", "ignore": []}

    def command(name, adapter, output):
        given = types.SimpleNamespace(adapter=str(adapter), output=str(output), **flags)
        monkeypatch.setattr(__main__, "FLAGS", given, raising=False)
        __main__.main(["convert", name])
        return capsys.readouterr().out

    assert "adapter: " in command("from_peft", saved / "bert", tmp_path / "run/adapter")
    said = command("to_peft", tmp_path / "run", tmp_path / "peft")
    assert "(r=3, lora_alpha=8, target_modules=[" in said
    assert_same_tensors(saved / "bert", tmp_path / "peft")
    with pytest.raises(SystemExit, match="holds an adapter"):
        command("from_peft", saved / "bert", tmp_path / "run/adapter")


def test_what_is_ignored_on_request(saved, bases, tmp_path):
    tensors = load_file(saved / "llama" / WEIGHTS)
    extra = {**tensors, "base_model.model.qa_outputs.weight": np.zeros((2, 16), np.float32)}
    there = rewritten(saved / "llama", tmp_path / "peft", extra, new_key=1)
    ignore = ["new_key", r"qa_outputs\..*"]
    from_peft(str(there), tmp_path / "ours", model=str(bases / "llama"), ignore=ignore)
    expected = logits_of(trained("llama", False))
    assert np.abs(our_logits(tmp_path / "ours", bases / "llama", "llama") - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["embed_tokens"]}, r"same table \(ensure_weight_tying is false\)"),
        ({"modules_to_save": ["lm_head"]}, r"lm_head.weight is not model.embed_tokens.weight"),
        ({"target_modules": ["lm_head"]}, r"lm_head has an update of its own"),
    ],
)
def test_a_tied_table_is_one(settings, message, bases, tmp_path):
    trained("tied", False, **settings).save_pretrained(tmp_path / "peft")
    with pytest.raises(ValueError, match=message):
        from_peft(str(tmp_path / "peft"), tmp_path / "ours", model=str(bases / "tied"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lora_jax.full(), r"has no low-rank update"),
        (lora_jax.lora({"query": {"magnitude": True}, "value": {}}, rank=2), r"differ in DoRA's"),
        (lora_jax.lora({"query": {"dropout": 0.1}, "value": {}}, rank=2), r"differ in dropout"),
        (lora_jax.lora({"query": {"b_bias": True}, "value": {}}, rank=2), r"differ in biases of B"),
        (lora_jax.lora("query/kernel", axes="io", rank=2), r"adapted without its layer"),
        (
            lora_jax.lora("query", rank=2) + lora_jax.prefix_embed(prefix=2, init="normal"),
            r"no place in an adapter of PEFT's LORA: embeddings/token/special/embedding",
        ),
    ],
)  # fmt: skip
def test_adapters_that_peft_has_no_place_for(method, message, bases, tmp_path):
    folder = trained_here("llama", False, method, bases, tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        to_peft(folder, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_another_base_is_refused(saved, bases, tmp_path):
    with pytest.raises(ValueError, match=r"no place in a gpt2 model here"):
        from_peft(str(saved / "llama"), tmp_path / "ours", model=str(bases / "gpt2"))
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config.json"):
        from_peft(str(bases / "llama"), tmp_path / "ours", model=str(bases / "llama"))
    assert pathlib.Path(saved / "llama" / CONFIG).is_file()
