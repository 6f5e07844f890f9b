"""Adapters in the forms that vLLM, llama.cpp and transformers take, against what these programs compute."""

from __future__ import annotations

import json

import gguf
import gguf_models
import jax
import jax.numpy as jnp
import numpy as np
import peft
import peft_models
import pytest
import torch
from peft_models import CONFIG, WEIGHTS, logits_of, model_of, trained
from safetensors.numpy import load_file

import lora_jax as lj
from experiments.convert import exports, servers
from experiments.convert import peft as convert
from experiments.convert.sources import Named
from experiments.runs.origins import NOTE, origin
from lora_jax.interop.servers import uniform, vllm
from lora_jax.models import hub

KEY = jax.random.key(0)
PATTERNS = {
    "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True,
    "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 1}, "alpha_pattern": {"v_proj": 5},
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("read_once")


def ours(name, with_head, bases, folder, **settings):
    """An adapter of PEFT as one of ours, and PEFT's logits."""
    model = trained(name, with_head, **settings)
    model.save_pretrained(folder / "peft")
    convert.from_peft(str(folder / "peft"), folder / "ours", model=str(bases / name))
    return folder / "ours", logits_of(model)


def with_one_scale(name, folder):
    """The logits of a program that takes r and lora_alpha for all modules: W + lora_alpha / r B A."""
    model, config = model_of(name, False), json.loads((folder / CONFIG).read_text())
    tensors, weights = load_file(folder / WEIGHTS), dict(model.named_parameters())
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            b = tensors[key.replace("lora_A", "lora_B")]
            assert len(a) == b.shape[1] == config["r"]
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            with torch.no_grad():
                delta = config["lora_alpha"] / config["r"] * torch.tensor(b) @ torch.tensor(a)
                weights[f"{module}.weight"].add_(delta)
    return logits_of(model)


@pytest.mark.parametrize("settings, rank", [
    (PATTERNS, None), (PATTERNS, 8), ({"target_modules": ["q_proj"], "lora_alpha": 5}, None),
    ({"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "olora", "r": 2}, None),
])  # fmt: skip
def test_vllm_has_one_rank_and_one_scale(settings, rank, bases, tmp_path):
    adapter, expected = ours("llama", False, bases, tmp_path, **settings)
    lines = servers.export(adapter, tmp_path / "vllm", "vllm", rank=rank)
    assert "--max-lora-rank=8" in lines[1]
    config = json.loads((tmp_path / "vllm" / CONFIG).read_text())
    assert not any(
        config[key] for key in ("rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save")
    )
    assert config["init_lora_weights"] is True and (rank is None or config["r"] == rank)
    assert np.abs(with_one_scale("llama", tmp_path / "vllm") - expected).max() < 1e-5
    again = peft.PeftModel.from_pretrained(model_of("llama", False), tmp_path / "vllm")
    assert np.abs(logits_of(again) - expected).max() < 1e-5
    names = load_file(tmp_path / "vllm" / WEIGHTS)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)


def test_what_is_uniform_already_stays_bit_by_bit(bases, tmp_path):
    adapter, _ = ours("llama", False, bases, tmp_path, target_modules=["q_proj", "v_proj"])
    servers.export(adapter, tmp_path / "vllm", "vllm")
    peft_models.assert_same_tensors(tmp_path / "peft", tmp_path / "vllm")
    assert servers.profile(adapter)[1].startswith("vllm: yes: ")


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_folding_a_scale_loses_no_digits(kind):
    values = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(kind)
    names = [f"base_model.model.model.layers.{i}.mlp.up_proj.lora_" for i in range(3)]
    tensors = {f"{n}A.weight": values[0].T for n in names} | {
        f"{n}B.weight": values[1] for n in names
    }
    config = {
        "r": 3,
        "lora_alpha": 3,
        "alpha_pattern": {"layers.1.mlp.up_proj": 6, "layers.2.mlp.up_proj": 5},
    }
    new, result = uniform(config, tensors)
    assert (new["r"], new["lora_alpha"]) == (3, 3)
    for name, ratio in zip(names, (1, 2, 5 / 3), strict=True):
        found = result[f"{name}B.weight"]
        assert found.dtype == (kind if ratio in (1, 2) else "float32")
        wanted = values[1].astype(np.float64) * ratio
        np.testing.assert_allclose(found, wanted, rtol=0 if ratio in (1, 2) else 2**-23)
    with pytest.raises(ValueError, match=r"has rank 3, more than 2; .*reduce --rank=2"):
        uniform(config, tensors, 2)


def test_float16_that_cannot_hold_the_product_becomes_float32():
    values = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float16) * np.float16(100)
    names = [f"base_model.model.model.layers.{i}.mlp.up_proj.lora_" for i in range(3)]
    tensors = {f"{n}A.weight": values[0].T for n in names} | {
        f"{n}B.weight": values[1] for n in names
    }
    large = {"layers.1.mlp.up_proj": 3 * 2**12, "layers.2.mlp.up_proj": 3 * 2.0**-20}
    config = {"r": 3, "lora_alpha": 3, "alpha_pattern": large}
    _, result = uniform(config, tensors)
    for name, ratio in zip(names, (1, 2**12, 2.0**-20), strict=True):
        found = result[f"{name}B.weight"]
        assert found.dtype == ("float16" if ratio == 1 else "float32")
        np.testing.assert_array_equal(found, values[1].astype(np.float64) * ratio)
    config["alpha_pattern"]["layers.1.mlp.up_proj"] = 1e38
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.up_proj: its scale times B is too large"
    ):
        uniform(config, tensors)


@pytest.mark.parametrize("server", ["peft", "transformers"])
@pytest.mark.parametrize("settings", [
    {"target_modules": ["q_proj", "v_proj"], "lora_bias": True, "alpha_pattern": {"v_proj": 20}},
    {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa", "r": 2},
    {"target_modules": ["q_proj"], "use_dora": True},
])  # fmt: skip
def test_padding_keeps_all_parts_of_an_update(settings, server, bases, tmp_path):
    if settings.get("use_dora") and server == "transformers":
        pytest.skip("which leaves magnitudes out")
    adapter, expected = ours("llama", False, bases, tmp_path, **settings)
    servers.export(adapter, tmp_path / "new", server, rank=8)
    model = peft.PeftModel.from_pretrained(model_of("llama", False), tmp_path / "new")
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["r"] == 8
    assert np.abs(logits_of(model) - expected).max() < 1e-5


def test_an_adapter_over_a_packed_base(bases, tmp_path):
    """Its factors do not depend on how the base is held; that it was packed is told."""
    config = hub.read_decoder_config(bases / "llama", base_format="int8")
    model = hub.load_decoder(bases / "llama", config)
    method = lj.lora(["query", "value"], rank=2)
    adapted = method.insert(model, KEY)
    adapted.layers.block.attention.value.lora.b[...] += 0.3
    lj.save(
        tmp_path / "ours",
        adapted,
        method,
        model,
        {"model": str(bases / "llama"), NOTE: origin(config)},
    )
    assert "held as int8" in servers.profile(tmp_path / "ours")[0]
    lines = servers.export(tmp_path / "ours", tmp_path / "vllm", "vllm")
    assert "held as int8" in lines[2]
    tensors = load_file(tmp_path / "vllm" / WEIGHTS)
    b = np.asarray(adapted.layers.block.attention.value.lora.b[...])
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], b[1].reshape(2, -1).T)


def test_ranks_of_vllm():
    assert [vllm.max_rank(rank) for rank in (1, 2, 8, 9, 257, 512)] == [1, 8, 8, 16, 320, 512]
    big = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.zeros((513, 2))}
    big |= {"base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": np.zeros((2, 513))}
    (found,) = vllm.findings({"r": 513, "lora_alpha": 1}, big, "llama")
    assert "rank 513 is more than vLLM's largest, 512" in found.what and not found.mended


@pytest.mark.parametrize("name, with_head, settings", [
    ("llama", False, PATTERNS), ("gpt2", True, {}),
    ("bert", True, {"bias": "all", "modules_to_save": ["classifier", "pooler"]}),
    ("llama", False, {"trainable_token_indices": [3, 9], "lora_bias": True, "target_modules": ["q_proj"]}),
])  # fmt: skip
def test_transformers_loads_what_is_said_to_load(name, with_head, settings, bases, tmp_path):
    adapter, expected = ours(name, with_head, bases, tmp_path, **settings)
    lines = servers.export(adapter, tmp_path / "new", "transformers")
    assert "load_adapter" in lines[1]
    model = model_of(name, with_head)
    model.load_adapter(str(tmp_path / "new"))
    assert np.abs(logits_of(model) - expected).max() < 1e-5


def gguf_arrays(path):
    return {t.name: np.array(t.data, np.float32) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    "name", ["llama", "llama_wide", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]
)
def test_an_adapter_file_is_the_update_of_the_bases_tensors(name, tmp_path):
    """W + alpha / rank B A of llama.cpp, in its names and order of rows, is the merged file."""
    base = tmp_path / "base.gguf"
    gguf_models.write(base, name)
    config = hub.read_decoder_config(base)
    model = hub.load_decoder(base, config)
    tables = {} if config.tie_word_embeddings else {"embeddings/token": {}, "lm_head": {"rank": 1}}
    layers = {"query": {}, "key": {"rank": 3}, "value": {"scaling": "alpha/sqrt(r)"}, "down": {"alpha": 7},
              "attention/output": {}, "gate": {}, "up": {}}  # fmt: skip
    method = lj.lora({**layers, **tables}, rank=2, alpha=3)
    adapted = method.insert(model, KEY)
    structure, trainable, frozen = lj.split(adapted, method.labels(adapted))
    draw = np.random.default_rng(0)
    trainable = {
        p: jnp.asarray(draw.normal(size=v.shape), jnp.float32) for p, v in trainable.items()
    }
    adapted = lj.join(structure, trainable, frozen)
    lj.save(tmp_path / "ours", adapted, method, model, {"model": str(base)})
    servers.export(tmp_path / "ours", tmp_path / "lora.gguf", "llama.cpp")
    exports.to_gguf(tmp_path / "merged.gguf", Named(adapter=str(tmp_path / "ours")), type="f32")
    before, factors = gguf_arrays(base), gguf_arrays(tmp_path / "lora.gguf")
    fields = gguf.GGUFReader(tmp_path / "lora.gguf").fields
    said = {key: field.contents() for key, field in fields.items()}
    architecture = gguf_models.ARCHITECTURES.get(name, name)
    assert said["general.architecture"] == architecture
    assert (said["general.type"], said["adapter.type"]) == ("adapter", "lora")
    merged, seen = gguf_arrays(tmp_path / "merged.gguf"), set()
    for key, a in factors.items():
        if not key.endswith(".lora_a"):
            continue
        tensor = key.removesuffix(".lora_a")
        b = factors[f"{tensor}.lora_b"]
        a = a.T if tensor == "token_embd.weight" else a  # llama.cpp looks up its rows
        delta = b @ a if tensor != "token_embd.weight" else (b @ a).T
        found = before[tensor] + said["adapter.lora.alpha"] / b.shape[1] * delta
        scale = np.abs(merged[tensor]).max()
        assert np.abs(found - merged[tensor]).max() < 2e-6 * scale, tensor
        seen.add(tensor)
    changed = {key for key, value in merged.items() if not np.array_equal(value, before[key])}
    assert seen == changed and len(seen) == 7 * config.depth + len(tables)


def test_sixteen_bits_and_numbers_that_they_cannot_hold(tmp_path):
    gguf_models.write(tmp_path / "base.gguf", "llama")
    model = hub.load_decoder(
        tmp_path / "base.gguf", hub.read_decoder_config(tmp_path / "base.gguf")
    )
    method = lj.lora("value", rank=2)
    adapted = method.insert(model, KEY)
    adapted.layers.block.attention.value.lora.b[...] += 0.1
    lj.save(tmp_path / "small", adapted, method, model, {"model": str(tmp_path / "base.gguf")})
    servers.export(tmp_path / "small", tmp_path / "half.gguf", "llama.cpp", type="f16")
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "half.gguf").tensors}
    assert kinds == {"F16"}
    adapted.layers.block.attention.value.lora.b[...] += 1e5
    lj.save(tmp_path / "large", adapted, method, model, {"model": str(tmp_path / "base.gguf")})
    with pytest.raises(
        ValueError, match=r"attn_v\.weight\.lora_b has values too large for f16.*--type=f32"
    ):
        servers.export(tmp_path / "large", tmp_path / "no.gguf", "llama.cpp", type="f16")
    assert not (tmp_path / "no.gguf").exists()


REFUSED = [
    ("llama", False, {"use_dora": True}, "vllm", r"no DoRA.*Merge the adapter.*to_hugging_face"),
    ("llama", False, {"use_dora": True}, "llama.cpp", "no DoRA"),
    ("llama", False, {"use_dora": True}, "transformers", "without a word.*PeftModel"),
    ("llama", False, {"lora_bias": True}, "vllm", r"no biases of B \(lora_bias\)"),
    ("qwen2", False, {"bias": "all"}, "llama.cpp", "takes no trained biases"),
    ("llama", False, {"trainable_token_indices": [3]}, "vllm", "no trained rows of tokens"),
    ("llama", False, {"modules_to_save": ["lm_head"]}, "vllm", r"no trained modules but.*lm_head"),
    ("llama", False, {"modules_to_save": ["lm_head"]}, "llama.cpp", r"no whole modules \(lm_head\)"),
    ("roberta", True, {}, "vllm", r"one linear head \(classifier\.dense"),
    ("bert", True, {}, "llama.cpp", "for the Llama families"),
    ("gpt2", False, {}, "vllm", "vLLM has no LoRA for gpt2 models"),
    ("qwen2", False, {"target_modules": ["embed_tokens", "q_proj"]}, "vllm", "no updates of tables"),
    ("tied", False, {"target_modules": ["embed_tokens"]}, "llama.cpp", "stops at the update of a table"),
]  # fmt: skip


@pytest.mark.parametrize("name, with_head, settings, server, message", REFUSED)
def test_what_a_server_does_not_take_is_named(
    name, with_head, settings, server, message, bases, tmp_path
):
    adapter, _ = ours(name, with_head, bases, tmp_path, **settings)
    output = tmp_path / ("new.gguf" if server == "llama.cpp" else "new")
    with pytest.raises(ValueError, match=message):
        servers.export(adapter, output, server)
    assert not output.exists()
    (verdict,) = (line for line in servers.profile(adapter) if line.startswith(f"{server}:"))
    assert verdict == f"{server}: no"


def test_where_exports_go(bases, tmp_path):
    adapter, _ = ours("llama", False, bases, tmp_path)
    for server, output, message in (
        ("llama.cpp", "x.bin", "must end in .gguf"), ("vllm", "peft", "not empty"),
        ("vllm", "new", "rank 600 is more than vLLM's largest, 512"),
        ("tgi", "new", r"--server must be one of peft, transformers, vllm, llama\.cpp"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            servers.export(
                adapter, tmp_path / output, server, rank=600 if "600" in message else None
            )
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"--type=f16 is of GGUF files"):
        servers.export(adapter, tmp_path / "new", "vllm", type="f16")
    servers.export(adapter, tmp_path / "same", "peft")
    peft_models.assert_same_tensors(tmp_path / "peft", tmp_path / "same")
