"""Merged classifiers, encoders, sums of adapters, cut stacks, rows of tokens: as folders of transformers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_folders
import torch
import transformers
import tune_files
from flax import nnx

import lora_jax as lj
from experiments.convert import exports, sources
from experiments.convert.sources import Named
from experiments.runs.origins import NOTE, origin
from lora_jax.adapters import attach, load_adapter
from lora_jax.data.batch import Inputs
from lora_jax.models import architectures, hub
from lora_jax.models.encoder import EncoderConfig

KEY = jax.random.key(0)
TOKENS = np.array([2, 7, 9, 5, 11, 3], np.int32)
WRITE = {
    "bert": tiny_folders.write_bert, "roberta": tiny_folders.write_roberta,
    "deberta-v2": tiny_folders.write_deberta, "gpt2": tiny_folders.write_gpt2,
}  # fmt: skip


def inputs():
    row = jnp.asarray(TOKENS)[None]
    places = jnp.arange(len(TOKENS), dtype=jnp.int32)[None]
    return Inputs(row, jnp.ones_like(row), places, jnp.zeros_like(row))


def randomised(model, method, seed=0):
    """The model with random values for all that the method trains."""
    draw = np.random.default_rng(seed)
    structure, trainable, frozen = lj.split(model, method.labels(model))
    values = {
        path: jnp.asarray(0.3 * draw.standard_normal(v.shape), v.dtype)
        for path, v in trainable.items()
    }
    return lj.join(structure, values, frozen)


def of_torch(folder, kind):
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model, model(torch.tensor(TOKENS[None], dtype=torch.long))


def save(folder, model, method, place, seed=0, **notes):
    adapted = randomised(method.insert(model, KEY), method, seed)
    config = architectures.read_config(place)
    labels = method.labels(adapted)
    _, trainable, _ = lj.split(adapted, labels)
    base = lj.fingerprint(lj.base_parameters(model, hub.HEAD))
    notes = {"model": str(place), NOTE: origin(config), **notes}
    lj.save_adapter(folder, trainable, labels, method, base, notes)
    return adapted


@pytest.mark.parametrize("architecture", WRITE)
def test_classifiers_become_folders_for_sequence_classification(architecture, tmp_path):
    WRITE[architecture](tmp_path / "base")
    config = architectures.read_config(tmp_path / "base")
    encoder = isinstance(config, EncoderConfig)
    load = hub.load_classifier if encoder else hub.load_decoder_classifier
    model = load(tmp_path / "base", config, 3, KEY)
    targets = (
        ["query", "value"] if encoder else {"qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}
    )
    method = lj.lora(targets, rank=2, alpha=3, head=hub.HEAD, bias="all")
    classes = {"classes": ["no", "maybe", "yes"]}
    adapted = save(tmp_path / "adapter", model, method, tmp_path / "base", labels=classes)
    named = Named(adapter=str(tmp_path / "adapter"))
    exports.to_hugging_face(tmp_path / "hf", named, dtype="float32")
    kind = transformers.AutoModelForSequenceClassification
    theirs, output = of_torch(tmp_path / "hf", kind)
    at = 0 if encoder else len(TOKENS) - 1
    wanted = np.asarray(adapted(inputs(), np.array([0]), np.array([at])))
    found = output.logits.numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert theirs.config.problem_type == "single_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "the cat sleeps near the red house"
    before = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer(text)["input_ids"] == before(text)["input_ids"]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
def test_an_encoder_without_a_head_stays_one(architecture, tmp_path):
    WRITE[architecture](tmp_path / "base")
    config = architectures.read_config(tmp_path / "base")
    model = hub.load_classifier(tmp_path / "base", config, 2, KEY)
    method = lj.lora("query", rank=2)
    adapted = save(tmp_path / "adapter", model, method, tmp_path / "base")
    exports.to_hugging_face(
        tmp_path / "hf", Named(adapter=str(tmp_path / "adapter")), dtype="float32"
    )
    _, output = of_torch(tmp_path / "hf", transformers.AutoModel)
    wanted = np.asarray(adapted.encoder(inputs()))
    assert np.abs(output.last_hidden_state.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A decoder and two adapters of it of different layers and ranks."""
    root = tmp_path_factory.mktemp("two")
    base = tune_files.write_model(root / "base")
    model = hub.load_decoder(base, hub.read_decoder_config(base))
    for name, method in (
        ("one", lj.lora({"qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}}, rank=2)),
        ("two", lj.lora({"up": {}, "attention/output": {"rank": 1}}, rank=3, alpha=2)),
    ):
        save(root / name, model, method, base, seed=len(name))
    return root, model


def logits(model):
    at = jnp.arange(len(TOKENS), dtype=jnp.int32)
    return np.asarray(model(inputs(), jnp.zeros_like(at), at))


def test_a_weighted_sum_of_adapters_is_merged_at_once(two, tmp_path):
    root, base = two
    adapters = {name: load_adapter(root / name) for name in ("one", "two")}
    named = Named(adapters=adapters, weights={"one": 1.0, "two": -0.5})
    lines = exports.to_hugging_face(tmp_path / "hf", named, dtype="float32")
    assert "the sum of one, two merged into" in lines[0]
    # In float64: the base's weights plus the weighted updates of each.
    kernels = lj.parameters(base)
    for name, weight in named.weights.items():
        merged = lj.parameters(lj.merge(attach(base, adapters[name])))
        for path, value in merged.items():
            own = np.asarray(lj.parameters(base)[path], np.float64)
            kernels[path] = kernels[path] + weight * (np.asarray(value, np.float64) - own)
    structure, _, _ = lj.split(base, dict.fromkeys(kernels, "frozen"))
    wanted = logits(lj.join(structure, {}, {k: jnp.float32(v) for k, v in kernels.items()}))
    _, output = of_torch(tmp_path / "hf", transformers.AutoModelForCausalLM)
    assert np.abs(output.logits[0].numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(logits(base) - wanted).max() > 0.1 * np.abs(wanted).max()


def test_rounding_to_sixteen_bits_is_told(two, tmp_path):
    named = Named(adapter=str(two[0] / "two"))
    lines = exports.to_hugging_face(tmp_path / "hf", named, dtype="bfloat16")
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert set(rows) >= {
        "layers/block/feed_forward/up/kernel",
        "layers/block/attention/output/kernel",
    }
    merged = lj.parameters(lj.merge(attach(two[1], load_adapter(two[0] / "two"))))
    path = "layers/block/feed_forward/up/kernel"
    wanted = np.asarray(merged[path], np.float64)
    rounded = np.asarray(merged[path].astype(jnp.bfloat16), np.float64)
    error = np.linalg.norm(rounded - wanted) / np.linalg.norm(wanted)
    assert rows[path][1] == "bfloat16" and float(rows[path][6]) == pytest.approx(error, abs=2e-6)
    assert (
        float(rows[path][6]) < 2**-8 / 3**0.5
    )  # half a unit in the last of 8 digits, evenly spread


def test_layers_of_their_own_and_rows_of_tokens_are_merged(two, tmp_path):
    root, base = two
    method = lj.lora({"last_1/block/attention/qkv": {}}, rank=2, cut=(1,))
    method = method + lj.token_rows({"embeddings/token": [5, 9]})
    adapted = save(tmp_path / "adapter", base, method, root / "base")
    exports.to_hugging_face(
        tmp_path / "hf", Named(adapter=str(tmp_path / "adapter")), dtype="float32"
    )
    wanted = logits(adapted)
    _, output = of_torch(tmp_path / "hf", transformers.AutoModelForCausalLM)
    assert np.abs(output.logits[0].numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert nnx.graphdef(lj.merge(adapted)) == nnx.graphdef(base)


def test_a_cut_stack_over_a_packed_base_is_merged(tmp_path):
    base = tune_files.write_model(tmp_path / "base")
    config = hub.read_decoder_config(base, base_format="int8")
    model = hub.load_decoder(base, config)
    method = lj.lora({"last_1/block/feed_forward/up": {}}, rank=2, cut=(1,))
    adapted = randomised(method.insert(model, KEY), method)
    lj.save(
        tmp_path / "adapter", adapted, method, model, {"model": str(base), NOTE: origin(config)}
    )
    exports.to_hugging_face(
        tmp_path / "hf", Named(adapter=str(tmp_path / "adapter")), dtype="float32"
    )
    _, output = of_torch(tmp_path / "hf", transformers.AutoModelForCausalLM)
    wanted = logits(adapted)
    assert np.abs(output.logits[0].numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_an_adapter_that_is_rounded_away_beside_a_head_is_told(tmp_path):
    tiny_folders.write_bert(tmp_path / "base")
    config = architectures.read_config(tmp_path / "base")
    model = hub.load_classifier(tmp_path / "base", config, 2, KEY)
    method = lj.lora("query", rank=1, head=hub.HEAD)
    adapted = method.insert(model, KEY)
    adapted.encoder.layers.block.attention.query.lora.b[...] += 1e-4
    base = lj.fingerprint(lj.base_parameters(model, hub.HEAD))
    labels = method.labels(adapted)
    _, trainable, _ = lj.split(adapted, labels)
    notes = {"model": str(tmp_path / "base"), "labels": {"classes": ["a", "a"]}}
    lj.save_adapter(tmp_path / "adapter", trainable, labels, method, base, notes)
    named = Named(adapter=str(tmp_path / "adapter"))
    lines = exports.to_hugging_face(tmp_path / "hf", named, dtype="bfloat16")
    assert any("of what the adapter changed is left" in line for line in lines)
    assert not any("head/" in line for line in lines)
    assert any("not 2 different names" in line for line in lines)
    assert any("nothing says to what length" in line for line in lines)


def test_texts_are_cut_as_the_run_cuts_them(tmp_path):
    tiny_folders.write_bert(tmp_path / "base")
    config = architectures.read_config(tmp_path / "base")
    model = hub.load_classifier(tmp_path / "base", config, 2, KEY)
    method = lj.lora("query", rank=1, head=hub.HEAD)
    save(tmp_path / "run" / "adapter", model, method, tmp_path / "base")
    record = {"config": {"data": {"max_length": 7}}}
    (tmp_path / "run" / "result.json").write_text(json.dumps(record))
    named = Named(adapter=str(tmp_path / "run"))
    lines = exports.to_hugging_face(tmp_path / "hf", named, dtype="float32")
    assert any("cut to 7 tokens" in line for line in lines)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(tokenizer("the cat " * 30, truncation=True)["input_ids"]) == 7


@pytest.mark.parametrize("classes, message", [
    (("a", "b"), "2 different names, one for each output"), (("a", "a"), "different names"),
    ("ab", "a list of texts"),
])  # fmt: skip
def test_names_of_classes_are_checked_before_writing(classes, message, tmp_path):
    tiny_folders.write_bert(tmp_path / "base")
    config = architectures.read_config(tmp_path / "base")
    count = 3 if classes == ("a", "b") else 2
    model = hub.load_classifier(tmp_path / "base", config, count, KEY)
    message = message.replace("2 different", "3 different")
    with pytest.raises((ValueError, TypeError), match=message):
        hub.save_classifier(tmp_path / "new", model, classes=classes)
    with pytest.raises(ValueError, match=r"config\.json cannot hold"):
        hub.save_classifier(tmp_path / "new", model, odd=object())
    with pytest.raises(TypeError, match="must be a Classifier"):
        hub.save_encoder(tmp_path / "new", nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("more", [{"weights": {"x": 0.5}}, {"rest": "nobody"}])
def test_weights_are_of_several_adapters(more, two):
    with pytest.raises(ValueError, match="--weights and --rest are of several adapters"):
        sources.source(Named(adapter=str(two[0] / "one"), **more))
