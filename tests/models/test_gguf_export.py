"""Models as GGUF files: against the writer and the packing of the gguf package, and read again."""

from __future__ import annotations

import gguf
import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import lora_jax as lj
from lora_jax import partition
from lora_jax.data.batch import Inputs
from lora_jax.errors import FileError, InputError
from lora_jax.files import write_pieces
from lora_jax.gguf.container import Container
from lora_jax.gguf.kinds import KINDS, NUMBERS
from lora_jax.gguf.writing import Tensor, copied, encoded
from lora_jax.models import hub
from lora_jax.models.gguf_export import check, save
from lora_jax.models.gguf_files import GgufFiles

Q = gguf.GGMLQuantizationType
PACKED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The file of every model."""
    folder = tmp_path_factory.mktemp("bases")
    for name in gguf_models.CONFIGS:
        gguf_models.write(folder / f"{name}.gguf", name)
    gguf_models.write(
        folder / "packed.gguf", "llama", general__file_type=7, quantize__imatrix__file="a.dat",
        kinds={"token_embd.weight": Q.Q8_0, "blk.0.attn_q.weight": Q.Q4_1, "blk.1.ffn_up.weight": Q.Q5_0},
    )  # fmt: skip
    return folder


def read(path):
    return hub.load_decoder(path, hub.read_decoder_config(path))


def changed(model, names=""):
    """The model with other values, in leaves whose path has a part of it in `names`."""
    params = partition.parameters(model)
    structure, _, _ = partition.split(model, dict.fromkeys(params, partition.FROZEN))
    draw = np.random.default_rng(0)
    new = {
        path: value + jnp.asarray(draw.normal(size=value.shape, scale=0.1), jnp.float32)
        if names in path
        else value
        for path, value in params.items()
    }
    return partition.join(structure, {}, new)


@jax.jit
def logits(model, tokens):
    places = jnp.arange(len(tokens), dtype=jnp.int32)
    row = tokens[None]
    inputs = Inputs(row, jnp.ones_like(row), places[None], jnp.zeros_like(row))
    return model(inputs, jnp.zeros_like(places), places)


def raw(path):
    """The bytes of every tensor, as the gguf package reads them."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: (t.tensor_type, t.data.copy().reshape(-1).view(np.uint8)) for t in tensors}


@pytest.mark.parametrize("name", gguf_models.CONFIGS)
def test_a_file_is_the_one_that_llama_cpps_converter_writes(bases, tmp_path, name):
    """Onto a base of zeros, all of the model's values are written."""
    theirs = bases / f"{name}.gguf"
    file = Container(theirs)
    zeros = {
        key: copied(file, key) if key == "rope_freqs.weight" else
        Tensor(kind=e.kind, shape=e.shape, data=lambda n=e.size: [np.zeros(n, np.uint8)])
        for key, e in file.tensors.items()
    }  # fmt: skip
    base = tmp_path / "base.gguf"
    write_pieces(base, encoded(file.metadata, zeros, file.value_types))
    report = save(tmp_path / "ours.gguf", read(theirs), base)
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()
    assert not any(one.same or one.errors for one in report)


@pytest.mark.parametrize("name", ["llama_wide", "qwen2", "gemma2"])
def test_a_file_in_float32_computes_what_the_model_does(bases, tmp_path, name):
    base = bases / f"{name}.gguf"
    model = changed(read(base))
    save(tmp_path / "x.gguf", model, base, "f32")
    again = read(tmp_path / "x.gguf")
    tokens = jnp.arange(3, 33, dtype=jnp.int32)
    found, wanted = (np.asarray(logits(m, tokens)) for m in (again, model))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert not np.allclose(logits(read(base), tokens), wanted, rtol=0, atol=0.1)
    ours, before = Container(tmp_path / "x.gguf").metadata, Container(base).metadata
    assert str(ours.pop("general.file_type")) == "0" and str(ours) == str(before)


@pytest.mark.parametrize("type", [*PACKED, "f16", "bf16"])
def test_tensors_are_packed_as_the_gguf_package_packs_them(bases, tmp_path, type):
    base, path = bases / "packed.gguf", tmp_path / "x.gguf"
    model = changed(read(base))
    report = {one.name: one for one in save(path, model, base, type)}
    save(tmp_path / "full.gguf", model, base, "f32")
    save(tmp_path / "before.gguf", read(base), base, "f32")
    full, before = (
        {t.name: t.data for t in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("full", "before")
    )
    found, whole = raw(path), 0.0
    assert list(found) == list(Container(base).tensors)
    for name, (kind, data) in found.items():
        values = full[name].copy()
        if values.ndim == 1:
            wanted = Q.F32
        elif name == "token_embd.weight" and type in PACKED:
            wanted = Q.Q8_0  # as the base has it
        else:
            wanted = Q[type.upper()]
        assert kind == wanted, name
        packed = gguf.quants.quantize(values, wanted)
        np.testing.assert_array_equal(data, packed.reshape(-1).view(np.uint8), err_msg=name)
        error = gguf.quants.dequantize(packed, wanted).astype(np.float64) - values
        assert report[name].errors == pytest.approx(np.sum(error**2), rel=1e-6)
        change = values - before[name]
        kept = np.vdot((error + change).astype(np.float64), change)
        assert report[name].kept == pytest.approx(kept, rel=1e-3)
        assert report[name].changes == pytest.approx(
            np.sum(change.astype(np.float64) ** 2), rel=1e-4
        )
        whole += np.sum(error**2)
    assert whole > 0
    metadata = Container(path).metadata
    assert gguf.LlamaFileType(metadata["general.file_type"]).name.endswith(type.upper())
    assert metadata.get("general.quantization_version") == (2 if type in PACKED else None)
    assert "quantize.imatrix.file" not in metadata
    kept = {"general.file_type", "quantize.imatrix.file"}
    left = {k: v for k, v in Container(base).metadata.items() if k not in kept}
    assert str(left) == str({k: metadata[k] for k in left})


def test_stored_packs_what_changed_and_copies_the_rest(bases, tmp_path):
    base, path = bases / "packed.gguf", tmp_path / "x.gguf"
    model = changed(read(base), "attention/query")
    report = {one.name: one for one in save(path, model, base)}
    before, after = raw(base), raw(path)
    assert {n: kind for n, (kind, _) in before.items()} == {
        n: kind for n, (kind, _) in after.items()
    }
    for name, (_, data) in before.items():
        same = "attn_q" not in name
        assert np.array_equal(data, after[name][1]) == same == report[name].same, name
        assert (report[name].errors > 0) == (name == "blk.0.attn_q.weight")
        assert (report[name].changes > 0) != same
    assert report["blk.0.attn_q.weight"].group == "attn_q.weight"
    assert Container(path).metadata["general.file_type"] == 7
    files = GgufFiles(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    wanted = np.asarray(partition.parameters(model)["layers/block/attention/query/kernel"])[0].T
    error = np.sum((files.read([name], np.float32)[name] - wanted) ** 2)
    assert report["blk.0.attn_q.weight"].errors == pytest.approx(error, rel=1e-4)


@pytest.fixture
def of_k(tmp_path, monkeypatch):
    """A file whose ffn_up is Q4_K: random blocks with small scales."""
    sizes = {**gguf_models._SIZES, "hidden_size": 256, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True)
    monkeypatch.setitem(gguf_models.CONFIGS, "k", config)
    monkeypatch.setitem(gguf_models.ARCHITECTURES, "k", "llama")
    gguf_models.write(tmp_path / "float.gguf", "k")
    file = Container(tmp_path / "float.gguf")
    tensors = {name: copied(file, name) for name in file.tensors}
    blocks = np.random.default_rng(0).integers(0, 256, (64, 144), np.uint8)
    blocks[:, :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
    tensors["blk.0.ffn_up.weight"] = Tensor(
        kind=KINDS[NUMBERS["Q4_K"]], shape=(64, 256), data=lambda: [blocks]
    )
    write_pieces(tmp_path / "k.gguf", encoded(file.metadata, tensors, file.value_types))
    return tmp_path / "k.gguf"


def test_types_that_are_not_packed_here_are_copied_or_refused(of_k, tmp_path):
    model, path = read(of_k), tmp_path / "x.gguf"
    save(path, changed(model, "query"), of_k)
    name = "blk.0.ffn_up.weight"
    assert raw(path)[name][0] == Q.Q4_K and np.array_equal(raw(path)[name][1], raw(of_k)[name][1])
    path.unlink()
    with pytest.raises(FileError, match=r"ffn_up.*Q4_K, and values that are not.*llama-quantize"):
        save(path, changed(model, "up"), of_k)
    assert not path.exists() and not list(tmp_path.glob(".x*"))
    with pytest.raises(InputError, match=r"one of f32, .*got 'q4_k_m'.*--type=f16.*llama-quantize"):
        save(path, model, of_k, "q4_k_m")


def test_refusals(bases, tmp_path):
    base, path = bases / "llama.gguf", tmp_path / "x.gguf"
    model = read(base)
    with pytest.raises(InputError, match=r"type of a GGUF file is one of .*got 'q9'$"):
        check(base, "q9")
    with pytest.raises(InputError, match=r"no GGUF file.*to_hugging_face.*convert_hf_to_gguf\.py"):
        check(tmp_path, "f16")
    with pytest.raises(
        InputError, match=r"attn_output\.weight has rows of 80 .*Q8_0 packs blocks of 32"
    ):
        check(bases / "llama_wide.gguf", "q8_0")
    with pytest.raises(InputError, match="not one of .*llama_wide.gguf: its"):
        save(path, model, bases / "llama_wide.gguf")
    adapted = lj.lora("query", rank=2).insert(model, jax.random.key(0))
    with pytest.raises(InputError, match="merge low-rank updates"):
        save(path, adapted, base)
    with pytest.raises(InputError, match="is quantised; lora_jax.dequantise"):
        save(path, lj.quantise(model, "up", "int8"), base)
    large = changed(model, "none")
    large.layers.block.feed_forward.up.kernel[...] *= 1e6
    with pytest.raises(FileError, match=r"ffn_up.*too large.*F16 holds.*--type=f32"):
        save(path, large, base, "f16")
    with pytest.raises(FileError, match=r"ffn_up.*too large.*Q4_0 holds"):
        large.layers.block.feed_forward.up.kernel[...] *= 1e3
        save(path, large, base, "q4_0")
    assert not list(tmp_path.iterdir())


def test_values_of_the_metadata_can_be_replaced(bases, tmp_path):
    base = bases / "qwen2.gguf"
    save(tmp_path / "x.gguf", read(base), base, values={"general.name": "mine"})
    assert Container(tmp_path / "x.gguf").metadata["general.name"] == "mine"
