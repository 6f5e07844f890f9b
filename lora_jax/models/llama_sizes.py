"""Sizes of the published models of the Llama kind, as their config.json files have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_jax.models.llama_config import LayerKind, LlamaConfig
from lora_jax.models.rotary import Rotary

_GEMMA: Mapping[str, Any] = {
    "tie_word_embeddings": True, "post_norms": True, "norm_offset": 1.0, "scaled_embeddings": True,
    "activation": "gelu_pytorch_tanh",
}  # fmt: skip


def _config(
    name: str, sizes: tuple[int, int, int, int, int], vocab_size: int, length: int, **fields: Any
) -> LlamaConfig:
    """A configuration from (width, inner width, layers, heads, heads of keys and values)."""
    width, inner, layers, heads, shared = sizes
    return LlamaConfig(
        architecture=name, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=shared, vocab_size=vocab_size,
        max_position_embeddings=length, **fields,
    )  # fmt: skip


def _all(theta: float, window: int | None = None, **scaling: Any) -> dict[str, Any]:
    return {"kinds": (LayerKind(window, Rotary(theta=theta, **scaling)),)}


def _alternating(layers: int, each: int, narrow: LayerKind, wide: LayerKind) -> dict[str, Any]:
    """Sliding layers, but every `each`-th one sees all tokens."""
    of_layers = tuple(int((layer + 1) % each == 0) for layer in range(layers))
    return {"kinds": (narrow, wide), "layer_kinds": of_layers}


def _qwen2(sizes: tuple[int, int, int, int, int], vocab_size: int, tied: bool) -> LlamaConfig:
    fields = {"attention_bias": True, "tie_word_embeddings": tied, "rms_norm_eps": 1e-6}
    return _config("qwen2", sizes, vocab_size, 32768, **fields, **_all(1e6))


def _qwen3(sizes: tuple[int, int, int, int, int], tied: bool) -> LlamaConfig:
    fields = {"head_dim": 128, "head_norms": True, "tie_word_embeddings": tied}
    return _config("qwen3", sizes, 151936, 40960, **fields, **_all(1e6))


def _gemma2(sizes: tuple[int, int, int, int, int], head: int, scalar: int) -> LlamaConfig:
    kinds = LayerKind(4096, Rotary()), LayerKind(None, Rotary())
    return _config(
        "gemma2", sizes, 256000, 8192, head_dim=head, query_pre_attn_scalar=scalar,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, **_GEMMA,
        **_alternating(sizes[2], 2, *kinds),
    )  # fmt: skip


def _gemma3(
    sizes: tuple[int, int, int, int, int], vocab_size: int, window: int, length: int,
    head: int = 256, scalar: int = 256, factor: float = 1.0,
) -> LlamaConfig:  # fmt: skip
    """The model of texts; larger ones see images, too, by a part that is not read here."""
    scaling: dict[str, Any] = {"scaling": "linear", "factor": factor} if factor > 1 else {}
    kinds = LayerKind(window, Rotary()), LayerKind(None, Rotary(theta=1e6, **scaling))
    return _config(
        "gemma3_text", sizes, vocab_size, length, head_dim=head, query_pre_attn_scalar=scalar,
        head_norms=True, **_GEMMA, **_alternating(sizes[2], 6, *kinds),
    )  # fmt: skip


def _llama(
    sizes: tuple[int, int, int, int, int], vocab_size: int, length: int, theta: float = 1e4,
    stretch: float = 1.0, **fields: Any,
) -> LlamaConfig:  # fmt: skip
    """Llama and SmolLM; `stretch` is Llama 3.1's."""
    scaling: dict[str, Any] = {}
    if stretch > 1:
        scaling = {"scaling": "llama3", "factor": stretch, "original_length": 8192}
    kinds = _all(theta, **scaling)
    return _config("llama", sizes, vocab_size, length, rms_norm_eps=1e-5, **kinds, **fields)


_TIED: Mapping[str, Any] = {"tie_word_embeddings": True}
SIZES: Mapping[str, LlamaConfig] = {
    "smollm2-135m": _llama((576, 1536, 30, 9, 3), 49152, 8192, 1e5, **_TIED),
    "smollm2-360m": _llama((960, 2560, 32, 15, 5), 49152, 8192, 1e5, **_TIED),
    "smollm2-1.7b": _llama((2048, 8192, 24, 32, 32), 49152, 8192, 1.3e5, **_TIED),
    "llama-65b": _llama((8192, 22016, 80, 64, 64), 32000, 2048),
    "llama-2-7b": _llama((4096, 11008, 32, 32, 32), 32000, 4096),
    "llama-2-13b": _llama((5120, 13824, 40, 40, 40), 32000, 4096),
    "llama-2-70b": _llama((8192, 28672, 80, 64, 8), 32000, 4096),
    "llama-3-8b": _llama((4096, 14336, 32, 32, 8), 128256, 8192, 5e5),
    "llama-3-70b": _llama((8192, 28672, 80, 64, 8), 128256, 8192, 5e5),
    "llama-3.1-8b": _llama((4096, 14336, 32, 32, 8), 128256, 131072, 5e5, 8.0),
    "llama-3.1-70b": _llama((8192, 28672, 80, 64, 8), 128256, 131072, 5e5, 8.0),
    "llama-3.2-1b": _llama((2048, 8192, 16, 32, 8), 128256, 131072, 5e5, 32.0, head_dim=64, **_TIED),
    "llama-3.2-3b": _llama((3072, 8192, 28, 24, 8), 128256, 131072, 5e5, 32.0, head_dim=128, **_TIED),
    "mistral-7b": _config(
        "mistral", (4096, 14336, 32, 32, 8), 32000, 32768, rms_norm_eps=1e-5, **_all(1e4, 4096)),
    "qwen2.5-0.5b": _qwen2((896, 4864, 24, 14, 2), 151936, True),
    "qwen2.5-1.5b": _qwen2((1536, 8960, 28, 12, 2), 151936, True),
    "qwen2.5-3b": _qwen2((2048, 11008, 36, 16, 2), 151936, True),
    "qwen2.5-7b": _qwen2((3584, 18944, 28, 28, 4), 152064, False),
    "qwen2.5-14b": _qwen2((5120, 13824, 48, 40, 8), 152064, False),
    "qwen2.5-32b": _qwen2((5120, 27648, 64, 40, 8), 152064, False),
    "qwen2.5-72b": _qwen2((8192, 29568, 80, 64, 8), 152064, False),
    "qwen3-0.6b": _qwen3((1024, 3072, 28, 16, 8), True),
    "qwen3-8b": _qwen3((4096, 12288, 36, 32, 8), False),
    "gemma-2-2b": _gemma2((2304, 9216, 26, 8, 4), 256, 256),
    "gemma-2-9b": _gemma2((3584, 14336, 42, 16, 8), 256, 256),
    "gemma-2-27b": _gemma2((4608, 36864, 46, 32, 16), 128, 144),
    "gemma-3-270m": _gemma3((640, 2048, 18, 4, 1), 262144, 512, 32768),
    "gemma-3-1b": _gemma3((1152, 6912, 26, 4, 1), 262144, 512, 32768),
    "gemma-3-4b": _gemma3((2560, 10240, 34, 8, 4), 262208, 1024, 131072, factor=8.0),
    "gemma-3-12b": _gemma3((3840, 15360, 48, 16, 8), 262208, 1024, 131072, factor=8.0),
    "gemma-3-27b": _gemma3((5376, 21504, 62, 32, 16), 262208, 1024, 131072, head=128, scalar=168, factor=8.0),
}  # fmt: skip
