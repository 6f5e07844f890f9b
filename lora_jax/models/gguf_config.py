"""The values of a config.json from the metadata of a GGUF file.

Every key of the model's architecture is used, has no effect, or is an error that names it. Defaults are
those of llama.cpp, which reads the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.errors import brief
from lora_jax.gguf.container import Container
from lora_jax.models import gguf_rope
from lora_jax.models.gguf_families import FAMILIES, Family
from lora_jax.models.gguf_settings import Settings
from lora_jax.reading import Record

_MOST_DEPTH = 2**10

_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def family_of(container: Container) -> tuple[str, Family]:
    """The architecture of a file, and how its models are written.

    Raises:
      FileError: another architecture, no model, or one of several files.
    """
    record = Record(container.path, container.metadata)
    if (kind := record.get("general.type", str, "model")) != "model":
        raise record.error("general.type", repr(kind)[:80], "'model'")
    if (parts := record.get("split.count", int, 0)) > 1:
        raise container.error(
            "split.count", str(parts), "one file with the whole model",
            "Join the parts with llama.cpp's llama-gguf-split --merge",
        )  # fmt: skip
    name = record.get("general.architecture", str)
    if name not in FAMILIES:
        raise record.error("general.architecture", repr(name)[:80], f"one of {', '.join(FAMILIES)}")
    return name, FAMILIES[name]


def read(path: Path) -> Record:
    """The values that the config.json of the model would have, by transformers' names.

    Args:
      path: of the GGUF file.

    Raises:
      MissingFileError, FileError, OSError: broken, of another architecture, or with a setting that is
        not implemented.
    """
    return from_container(Container(path))


def from_container(container: Container) -> Record:
    """The same of a file whose head was read; see `read`."""
    architecture, family = family_of(container)
    settings = Settings(container, architecture)
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise container.error("tensors", "no matrix token_embd.weight", "the embeddings of tokens")
    heads = settings.size("attention.head_count")
    values: dict[str, Any] = {
        "model_type": family.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": settings.size("embedding_length"),
        "intermediate_size": settings.size("feed_forward_length"),
        "num_hidden_layers": settings.size("block_count", most=_MOST_DEPTH),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.size("attention.head_count_kv", heads),
        "max_position_embeddings": settings.size("context_length", most=2**31 - 1),
        "rms_norm_eps": settings.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in container.tensors,
        **family.constants,
    }
    if settings.size("vocab_size", embedding.shape[0]) != embedding.shape[0]:
        raise settings.error(
            "vocab_size", str(settings.size("vocab_size")),
            f"{embedding.shape[0]}, the rows of token_embd.weight",
        )  # fmt: skip
    width = _head_width(settings, values)
    if family.model_type == "qwen2":  # whose config.json has no such key
        if width * heads != values["hidden_size"]:
            raise settings.error(
                "attention.key_length", str(width),
                f"embedding_length / attention.head_count, {values['hidden_size'] / heads:g}",
            )  # fmt: skip
    else:
        values["head_dim"] = width
    values["rope_parameters"] = gguf_rope.parameters(settings, container, width, family.permuted)
    values |= _windows(settings, family, values)
    settings.finish()
    if values["model_type"] != "mistral":  # which has none, and no keys for them
        values |= {key: name in container.tensors for key, name in family.biases.items()}
    record = Record(container.path, container.metadata)
    values |= {name: record.integer(key, 0) for name, key in _IDS.items() if key in record.values}
    return Record(container.path, values)


def _head_width(settings: Settings, values: Mapping[str, Any]) -> int:
    """Values of a head, all of which are rotated."""
    default = values["hidden_size"] // values["num_attention_heads"]
    width = settings.size("attention.key_length", max(default, 1))
    for key, remedy in (
        ("attention.value_length", "Values of another width than keys are not implemented"),
        ("rope.dimension_count", "Heads that are rotated in part are not implemented"),
    ):
        usual = width if key.startswith("rope") else max(default, 1)
        if (other := settings.size(key, usual)) != width:
            raise settings.error(key, str(other), f"{width}, the width of keys", remedy)
    return width


def _windows(settings: Settings, family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of windows of attention; for Gemma also of the limits and scales of its scores."""
    if not family.sliding:
        # Mistral's first models have a window and are written as architecture llama.
        window = settings.window(0) if family.permuted else 0
        return {"model_type": "mistral", "sliding_window": window} if window else {}
    depth, heads = values["num_hidden_layers"], values["num_attention_heads"]
    second = family.model_type == "gemma2"
    window = settings.window(4096 if second else 0)
    pattern = _pattern(settings, family.sliding if window else 1, depth)
    width = values["hidden_size"] // heads if depth == family.large else values["head_dim"]
    caps = {
        "attn_logit_softcapping": settings.number("attn_logit_softcapping", 50.0 * second),
        "final_logit_softcapping": settings.number("final_logit_softcapping", 30.0 * second),
    }
    result: dict[str, Any] = {name: value or None for name, value in caps.items()}
    result["layer_types"] = ["sliding_attention" if x else "full_attention" for x in pattern]
    result["query_pre_attn_scalar"] = width
    if window:
        result["sliding_window"] = window
    if second:
        return result
    if result["attn_logit_softcapping"]:
        raise settings.error(
            "attn_logit_softcapping", str(caps["attn_logit_softcapping"]), "no such key for gemma3"
        )
    local = settings.number("rope.freq_base_swa", 10000.0)
    result["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
        "full_attention": values["rope_parameters"],
    }
    return result


def _pattern(settings: Settings, usual: int, depth: int) -> list[bool]:
    """Of every layer, whether it attends to a window."""
    found = settings.anything("attention.sliding_window_pattern")
    if found is None:
        found = usual
    if isinstance(found, np.ndarray) and found.dtype == bool and found.size == depth:
        return [bool(x) for x in found] if usual > 1 else [False] * depth
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= _MOST_DEPTH:
        raise settings.error(
            "attention.sliding_window_pattern", brief(found),
            f"a number of layers, or true or false for each of {depth}",
        )  # fmt: skip
    period = found if usual > 1 else 1
    return [layer % period < period - 1 for layer in range(depth)]
