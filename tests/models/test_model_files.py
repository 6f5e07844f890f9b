"""The weights of a model folder: what is refused before and while they are read; trained heads."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_folders
import torch
import transformers
from safetensors.numpy import load_file, save_file

from lora_jax.data.batch import Inputs
from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.models import architectures, hub
from lora_jax.models.model_files import INDEX, WEIGHTS

KEY = jax.random.key(0)
NAME = "encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_folders.write_bert(folder)
    return folder


@pytest.fixture
def rewritten(bert, tmp_path):
    """Writes the folder with changed tensors."""

    def write(change):
        (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
        save_file(change(load_file(bert / WEIGHTS)), tmp_path / WEIGHTS)
        return tmp_path

    return write


@pytest.fixture
def sharded(bert, tmp_path):
    """Writes the folder in two shards, with a changed map of their names."""

    def write(change=lambda named: named):
        tensors = load_file(bert / WEIGHTS)
        names = sorted(tensors)
        files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
        for file, part in files.items():
            save_file({name: tensors[name] for name in part}, tmp_path / file)
        named = {name: file for file, part in files.items() for name in part}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": change(named)}))
        (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
        return tmp_path

    return write


def read(folder):
    return hub.read_base(folder, architectures.read_config(folder))


def test_shards_and_other_types_of_numbers_give_the_same_values(bert, sharded, rewritten):
    expected = read(bert)
    for folder, dtype in ((sharded(), None), (rewritten(lambda t: t), "float64")):
        (folder / INDEX).unlink(missing_ok=dtype is not None)
        if dtype:
            tensors = load_file(folder / WEIGHTS)
            save_file({k: v.astype(dtype) for k, v in tensors.items()}, folder / WEIGHTS)
        for path, value in read(folder).items():
            assert value.dtype == jnp.float32
            np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.parametrize("dtype", ["int8", "bool", "int64", "complex64"])
def test_only_floating_types_are_weights(rewritten, dtype):
    folder = rewritten(lambda t: {**t, NAME: t[NAME].astype(dtype)})
    with pytest.raises(FileError, match=rf"{NAME}: found type .*Quantised bases are read"):
        hub.check(folder, architectures.read_config(folder))


def test_eight_bit_floats_are_refused(rewritten):
    folder = rewritten(lambda t: t)
    from safetensors.torch import save_file as save_torch

    tensors = {k: torch.tensor(v) for k, v in load_file(folder / WEIGHTS).items()}
    tensors[NAME] = tensors[NAME].to(torch.float8_e4m3fn)
    save_torch(tensors, folder / WEIGHTS)
    with pytest.raises(FileError, match="found type F8_E4M3"):
        read(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_are_not_finite_are_refused(rewritten, value):
    def change(tensors):
        wrong = tensors[NAME].astype(np.float64)
        wrong[1, 2] = value
        return {**tensors, NAME: wrong}

    folder = rewritten(change)
    hub.check(folder, architectures.read_config(folder))  # which reads no values
    with pytest.raises(FileError, match=rf"model\.safetensors, tensor {NAME}: found"):
        read(folder)


def test_a_tensor_of_two_names_is_refused(rewritten):
    folder = rewritten(lambda t: {**t, f"bert.{NAME}": t[NAME]})
    with pytest.raises(InputError, match=rf"bert\.{NAME} and {NAME} are two names of one tensor"):
        read(folder)


def test_without_a_pooler_the_reason_is_given(rewritten):
    folder = rewritten(lambda t: {k: v for k, v in t.items() if not k.startswith("pooler")})
    with pytest.raises(
        InputError, match=r"2 missing: pooler.*frozen at random values.*save_pretrained"
    ):
        read(folder)


def test_buffers_of_some_versions_are_accepted(rewritten, bert):
    integers = np.arange(20)[None]
    buffers = {f"embeddings.{name}": integers for name in ("token_type_ids", "position_ids")}
    assert read(rewritten(lambda t: {**t, **buffers})).keys() == read(bert).keys()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda named: {**named, NAME: "../b.safetensors"}, r"'\.\./b\.safetensors', expected the plain"),
        (lambda named: {**named, NAME: "/etc/passwd"}, "'/etc/passwd'"),
        (lambda named: {**named, NAME: "sub/b.safetensors"}, "plain name"),
        (lambda named: {**named, NAME: "..\\b.safetensors"}, "plain name"),
        (lambda named: {**named, NAME: "b.bin"}, "plain name"),
        (lambda named: {**named, NAME: ""}, "plain name"),
        (lambda named: {**named, NAME: 3}, rf"weight_map\.{NAME}: found 3, expected a string"),
        (lambda named: {**named, NAME: "a.safetensors"}, "b.safetensors alone"),
        (lambda named: {**named, "other": "a.safetensors"}, r"weight_map\.other"),
        (lambda named: {k: v for k, v in named.items() if k != NAME}, f"found no {NAME}"),
        (lambda named: {**named, NAME: "c.safetensors"}, r"c\.safetensors is missing, which"),
        (lambda named: [], r"weight_map: found \[\], expected an object"),
        (lambda named: {}, r"expected the files of all tensors"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit(sharded, change, message):
    folder = sharded(change)
    with pytest.raises((FileError, MissingFileError), match=message) as error:
        read(folder)
    assert str(folder) in str(error.value)


def test_an_index_without_map_and_one_beside_a_whole_file(sharded, bert):
    folder = sharded()
    (folder / WEIGHTS).write_bytes((bert / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match="not clear which weights are meant"):
        read(folder)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text('{"metadata": {}}')
    with pytest.raises(FileError, match="weight_map: found nothing, expected an object"):
        read(folder)


def test_a_tensor_in_two_shards(sharded, bert):
    folder = sharded()
    tensors = load_file(folder / "a.safetensors")
    save_file({**tensors, NAME: load_file(bert / WEIGHTS)[NAME]}, folder / "a.safetensors")
    with pytest.raises(
        FileError, match=rf"{NAME}: found b\.safetensors, expected a\.safetensors alone"
    ):
        read(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_config.json"])
def test_other_files_get_the_recipe(bert, tmp_path, name):
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    (tmp_path / name).write_text("{}")
    recipe = "AutoModel.from_pretrained" if name.endswith("bin") else "merge_and_unload"
    with pytest.raises(MissingFileError, match=recipe):
        read(tmp_path)


HEADS = {
    "bert": (tiny_folders.write_bert, transformers.BertForSequenceClassification),
    "roberta": (tiny_folders.write_roberta, transformers.RobertaForSequenceClassification),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_published_head_gives_the_logits_of_transformers(tmp_path, kind):
    write, theirs = HEADS[kind]
    write(tmp_path, theirs, num_labels=3)
    config = hub.read_config(tmp_path)
    unused = hub.check(tmp_path, config)
    assert unused and all(name.startswith("classifier.") for name in unused)
    assert "classifier." in hub.unused_heads(unused)
    model = hub.load_classifier(tmp_path, config, 3, KEY, head="published")
    tokens = np.arange(12).reshape(2, 6) + 5
    columns = np.broadcast_to(np.arange(6), tokens.shape)
    inputs = Inputs(tokens, np.ones_like(tokens), columns, np.zeros_like(tokens))
    with torch.no_grad():
        expected = theirs.from_pretrained(tmp_path).eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model(inputs, np.arange(2), np.zeros(2, int)), expected, atol=2e-6)
    with pytest.raises(InputError, match=r"misshapen: classifier.*is \(3,.*asks for \(2"):
        hub.load_classifier(tmp_path, config, 2, KEY, head="published")


def test_a_head_that_is_not_there_or_of_another_task_is_not_taken(bert, tmp_path):
    with pytest.raises(FileError, match=r"architectures: found \['BertModel'\]"):
        hub.load_classifier(bert, hub.read_config(bert), 2, KEY, head="published")
    tiny_folders.write_bert(tmp_path, transformers.BertForTokenClassification)
    with pytest.raises(InputError, match="ForTokenClassification|missing: pooler"):
        hub.load_classifier(tmp_path, hub.read_config(tmp_path), 2, KEY, head="published")


def test_heads_of_a_decoder_have_names_too(tmp_path):
    tiny_folders.write_gpt2(tmp_path, transformers.GPT2ForSequenceClassification, pad_token_id=0)
    config = hub.read_decoder_config(tmp_path)
    assert hub.check(tmp_path, config) == ("score.weight",)
    assert hub.unused_heads(()) == ""
