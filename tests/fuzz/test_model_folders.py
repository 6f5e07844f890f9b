"""Model folders that are wrong in some way: an error that names the folder, or the right model."""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
import tiny_folders
import transformers
from hypothesis import event, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lora_jax.data import tokenizers
from lora_jax.errors import InputError
from lora_jax.models import architectures, hub, model_files
from lora_jax.ranges import Whole
from tests.fuzz.fixed_settings import fixed_settings

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 30), st.sampled_from([2**31, 2**63, 10**9, -(10**30)]),
    st.floats(), st.sampled_from(["", "gelu", "relu", "absolute", "bert", "../x", "\ud800", "0" * 99]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.just(json.loads("[" * 90 + "]" * 90)), st.integers(10**400, 10**400 + 1),
)  # fmt: skip
KEYS = st.sampled_from([
    "is_decoder", "quantization_config", "auto_map", "pruned_heads", "classifier_dropout", "n_inner",
    "tie_word_embeddings", "hidden_size", "num_hidden_layers", "n_embd", "architectures",
    "pad_token_id", "eos_token_id", "tokenizer_class", "unrelated",
])  # fmt: skip
KINDS = st.sampled_from(["bert", "roberta", "gpt2", "shards"])
DEFAULTS = {
    "bert": transformers.BertConfig(), "roberta": transformers.RobertaConfig(),
    "gpt2": transformers.GPT2Config(),
}  # fmt: skip
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
              "model.safetensors.index.json")  # fmt: skip
WEIGHTS = ("model.safetensors", "model-00001-of-00002.safetensors")
TEXTS = ["the cat runs", "a red house near the old river", "<s> [MASK] \u00e9 \U0001f984", ""]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The folders, and what is read from them."""
    root = tiny_folders.write_all(tmp_path_factory.mktemp("originals"))
    shutil.copytree(root / "bert", root / "shards")
    tensors = load_file(root / "shards" / WEIGHTS[0])
    (root / "shards" / WEIGHTS[0]).unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, root / "shards" / file)
        index |= dict.fromkeys(part, file)
    (root / "shards" / model_files.INDEX).write_text(json.dumps({"weight_map": index}))
    return root, {kind: read(root / kind) for kind in ("bert", "roberta", "gpt2", "shards")}


def read(folder):
    """What a run reads of a model folder: configuration, leaves, and the tokens of some texts."""
    config = architectures.read_config(folder)
    hub.check(folder, config)
    needed = tokenizers.DECODER if config.architecture == "gpt2" else tokenizers.ENCODER
    tokenizer = tokenizers.load_tokenizer(folder, needed, config.vocab_size)
    ids = tokenizer(TEXTS)["input_ids"]
    assert all(0 <= i < config.vocab_size for row in ids for i in row)
    if needed == tokenizers.ENCODER:
        assert {row[0] for row in ids} == {tokenizer.cls_token_id}
        assert {row[-1] for row in ids} == {tokenizer.sep_token_id}
    return config, hub.read_base(folder, config), ids


def mutated_json(draw, value):
    """The value with one thing in it changed."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        action = draw(st.sampled_from(["inside", "inside", "replace", "remove", "add"]))
        result = value.copy()
        if action == "inside":
            result[key] = mutated_json(draw, value[key])
        elif action == "replace":
            result[key] = draw(VALUES)
        elif action == "remove":
            del result[key]
        elif isinstance(value, dict):
            result[draw(KEYS)] = draw(VALUES)
        else:
            result.append(draw(VALUES))
        return result
    return draw(VALUES)


def mutated_bytes(draw, content):
    """The content with a byte flipped, a part cut out, or one put in; mostly near its beginning."""
    end = len(content) if draw(st.booleans()) else min(len(content), 300)
    at = draw(st.integers(0, end))
    action = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
    if action == "end":
        return content[:at]
    if action == "cut":
        return content[:at] + content[at + draw(st.integers(1, 20)) :]
    new = draw(st.binary(min_size=1, max_size=9))
    return content[:at] + new + content[at + (len(new) if action == "flip" else 0) :]


def mutate_tensors(draw, path):
    """Changes one tensor of a file; the result says whether its values are others."""
    tensors = load_file(path)
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors[name]
    action = draw(st.sampled_from(["type", "shape", "nan", "remove", "add", "rename", "twice"]))
    other = draw(st.sampled_from(["bert.", "roberta.", "transformer.", "x.", "classifier."])) + name
    if action == "type":
        kind = draw(st.sampled_from(["int8", "bool", "float16", "float64", "int64", "complex64"]))
        tensors[name] = value.astype(kind)
    elif action == "shape":
        shapes = [value[..., :-1], value[None], value.reshape(-1, 1), value[:0]]
        tensors[name] = draw(st.sampled_from(shapes)).copy()
    elif action == "nan":
        tensors[name] = value.copy()
        at = draw(st.integers(0, value.size - 1))
        tensors[name].flat[at] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    elif action == "add":
        tensors[other] = value[..., :1].copy()
    elif action == "twice":
        tensors[name.removeprefix("bert.")], tensors[other] = value, value
    if action in ("remove", "rename"):
        del tensors[name]
    if action == "rename":
        tensors[other] = value
    save_file(tensors, path)
    return action == "type"


def mutate(draw, folder):
    """Changes one file of the folder; the result says whether weights may have other values."""
    present = sorted(p.name for p in folder.iterdir() if p.name != "generation_config.json")
    path = folder / draw(st.sampled_from([*present, "config.json"]))
    event(f"file {path.name}")
    if not draw(st.integers(0, 15)):
        path.unlink()
    elif path.name in JSON_FILES and draw(st.integers(0, 3)):
        value = mutated_json(draw, json.loads(path.read_text()))
        path.write_text(json.dumps(value))
    elif path.name in WEIGHTS and draw(st.booleans()):
        return mutate_tensors(draw, path)
    else:
        path.write_bytes(mutated_bytes(draw, path.read_bytes()))
        return path.suffix == ".safetensors"
    return False


def check(originals, data):
    root, expected = originals
    kind = data.draw(KINDS)
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = pathlib.Path(name) / "model"
        shutil.copytree(root / kind, folder)
        other_values = mutate(data.draw, folder)
        try:
            config, leaves, ids = read(folder)
        except (InputError, OSError) as error:
            event(f"refused: {type(error).__name__}")
            assert str(folder) in str(error), error
            return
        own, base, tokens = expected[kind]
        same = (config == own, ids == tokens)
        event(f"read: {'the same' if all(same) else 'another valid one'}")
        assert leaves.keys() == base.keys()
        for path, value in leaves.items():
            assert value.shape == base[path].shape and np.isfinite(value).all(), path
            if not other_values:
                np.testing.assert_array_equal(value, base[path], err_msg=path)
        written = json.loads((folder / "config.json").read_text())
        for key, allowed in architectures.ARCHITECTURES[config.architecture].keys.ranges.items():
            value = written.get(key, getattr(DEFAULTS[config.architecture], key))
            assert getattr(config, key) == value, key
            assert not isinstance(value, bool | str | list | dict), key
            whole = isinstance(getattr(allowed, "of", allowed), Whole)
            assert value is None or (value > 0 if whole else 0 <= value <= 100), key


@fixed_settings(200)
@given(st.data())
def test_a_changed_folder_is_refused_or_right(originals, data):
    check(originals, data)


@pytest.mark.slow
@fixed_settings(6_000)
@given(st.data())
def test_thousands_of_changed_folders_are_refused_or_right(originals, data):
    check(originals, data)
