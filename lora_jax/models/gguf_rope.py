"""The rotary embedding of a model in a GGUF file, as transformers' `rope_parameters`."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_jax.gguf import blocks
from lora_jax.gguf.container import Container
from lora_jax.models.gguf_families import ROPE_FACTORS
from lora_jax.models.gguf_settings import Settings

# Of all models with Llama 3's scaling; llama.cpp's converter takes no other lengths either.
_LLAMA3 = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def parameters(
    settings: Settings, container: Container, width: int, factors: bool
) -> dict[str, Any]:
    """`rope_parameters` of the layers that attend to everything.

    Args:
      settings: keys of the architecture.
      container: the file.
      width: values of a head.
      factors: whether the architecture may have factors of the periods in a tensor.

    Raises:
      FileError: a scaling that is not implemented.
    """
    base = settings.number("rope.freq_base", 10000.0)
    if not base > 1:
        raise settings.error("rope.freq_base", f"{base:g}", "a number above 1")
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    scaled = _scaling(settings)
    if not factors or ROPE_FACTORS not in container.tensors:
        return {**plain, **scaled}
    if scaled:
        raise settings.error(
            "rope.scaling.type", scaled["rope_type"], f"none, as the file has {ROPE_FACTORS} too"
        )
    return {**plain, **_llama3(container, base, width)}


def _scaling(settings: Settings) -> dict[str, Any]:
    """The scaling by a factor; nothing if there is none."""
    for key, usual in (
        ("attn_factor", 1.0), ("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0),
        ("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0),
    ):  # fmt: skip
        whole = f"rope.scaling.{key}"
        if (found := settings.number(whole, usual)) != usual:
            raise settings.error(whole, f"{found:g}", f"{usual:g}: others are not implemented")
    settings.anything("rope.scaling.finetuned")  # says where the scaling is from
    old = settings.number("rope.scale_linear", 1.0)
    factor = settings.number("rope.scaling.factor", old)
    length = settings.size("rope.scaling.original_context_length", 0, 2**31 - 1)
    kind = settings.text("rope.scaling.type", "linear")  # as llama.cpp has it
    if not factor >= 0:
        raise settings.error("rope.scaling.factor", f"{factor:g}", "a positive number")
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factor >= 1 and length > 0:
        return {
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length
        }  # fmt: skip
    raise settings.error(
        "rope.scaling.type", f"{kind} (factor {factor:g}, original length {length})"[:80],
        "none, linear, or yarn with its factor and length", "Other scalings are not implemented",
    )  # fmt: skip


def _llama3(container: Container, base: float, width: int) -> dict[str, Any]:
    """Llama 3's scaling, if the factors of the periods are those of it; nothing if all are 1."""
    entry = container.tensors[ROPE_FACTORS]
    where = f"tensor {ROPE_FACTORS}"
    if entry.kind.name != "F32" or entry.shape != (width // 2,):
        raise container.error(
            where,
            f"{entry.kind.name} {entry.shape}",
            f"F32 {(width // 2,)}: a factor for each pair",
        )
    found = np.concatenate(
        [blocks.dequantise("F32", raw).ravel() for raw in container.blocks(ROPE_FACTORS, 2**16)]
    )
    if (found == 1).all():
        return {}
    factor = float(np.float32(found.max()))
    periods = 2 * np.pi * base ** (np.arange(0, width, 2) / width)
    length, low, high = (
        _LLAMA3[k] for k in ("original_max_position_embeddings", *list(_LLAMA3)[:2])
    )
    smooth = np.clip((length / periods - low) / (high - low), 0, 1)
    if not np.isfinite(factor) or not np.allclose(
        found, 1 / ((1 - smooth) / factor + smooth), 1e-4
    ):
        raise container.error(
            where, f"factors from {found.min():g} to {found.max():g}",
            f"those of Llama 3's scaling ({_LLAMA3})", "Other factors are not implemented",
        )  # fmt: skip
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
