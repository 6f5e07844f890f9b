"""Adapters of ours as one style file, the inverse of `reading`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeGuard

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

from lora_jax.adapter_files import Adapter
from lora_jax.adapters import attach
from lora_jax.checks import one_of
from lora_jax.errors import InputError
from lora_jax.files import write_bytes
from lora_jax.interop.diffusion import keys
from lora_jax.interop.diffusion.modules import modules
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.pairs import LowRankUpdate
from lora_jax.patterns import some

Form = Literal["diffusers", "kohya"]
_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
_TO_LORA = "lora_jax.to_lora makes plain LoRA of other updates"


def write(
    path: str | os.PathLike[str],
    adapters: Mapping[str, Adapter],
    models: Mapping[str, nnx.Module],
    *,
    form: Form = "diffusers",
    dtype: str = "float32",
) -> Path:
    """Writes adapters of the models of Stable Diffusion as one safetensors file.

    In diffusers' form the scale alpha/r is multiplied into the second factor, since files without metadata
    have none; in kohya's it stands beside, as `alpha`.

    Args:
      path: of the file, `.safetensors`.
      adapters: from `load_adapter`, by model: `unet`, `text_encoder`.
      models: the unadapted models that they are of.
      form: whose names the tensors have.
      dtype: of the factors in the file: float32, float16 or bfloat16.

    Returns:
      The path.

    Raises:
      InputError: an adapter changes what such files cannot hold, a value does not fit into the type, or an
        adapter is of another model.
    """
    one_of("form", form, ("diffusers", "kohya"))
    one_of("dtype", dtype, tuple(_TYPES))
    if not adapters or (odd := adapters.keys() - keys.KOHYA.keys()):
        known = ", ".join(keys.KOHYA)
        raise InputError(
            f"adapters must be of {known}; got {some(sorted(odd)) if adapters else 'none'}"
        )
    tensors: dict[str, np.ndarray] = {}
    ranks, alphas = [], []
    for part, adapter in adapters.items():
        for name, down, up, alpha in _factors(part, adapter, models[part]):
            rank = down.shape[0]
            ranks.append(rank)
            alphas.append(alpha)
            if form == "kohya":
                own: dict[keys.Side, np.ndarray] = {
                    "down": down,
                    "up": up,
                    "alpha": np.asarray(alpha, np.float32),
                }
                tensors |= {
                    keys.kohya(part, name, side): _typed(value, dtype, name)
                    for side, value in own.items()
                }
            else:
                scaled = np.float32(alpha / rank) * up
                tensors[keys.diffusers(part, name, "down")] = _typed(down, dtype, name)
                tensors[keys.diffusers(part, name, "up")] = _typed(scaled, dtype, name)
    metadata = {"format": "pt"}
    if form == "kohya":
        metadata |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(max(ranks)),
            "ss_network_alpha": str(max(alphas)),
        }
    write_bytes(Path(path), save(tensors, metadata))
    return Path(path)


def _factors(
    part: str, adapter: Adapter, model: nnx.Module
) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
    """Of each adapted module its name, both factors as they are published, and alpha as of alpha / rank."""
    adapted = attach(model, adapter, where=f"the adapter of the {part}")
    by_path = {module.path: module for module in modules(model).values()}
    result, used = [], set()
    for path, layer in adapted_layers(adapted).items():
        pair = layer.lora
        if path not in by_path or not _is_plain(pair):
            raise InputError(
                f"the adapter of the {part} changes {path} by {type(pair).__name__}, and a style file has "
                f"LoRA's two factors alone. {_TO_LORA}"
            )
        module = by_path[path]
        a, b = (np.asarray(f[...], np.float32) for f in (pair.a, pair.b))
        rank = a.shape[-1]
        result.append(
            (module.name, module.published_down(a), module.published_up(b), pair.scale * rank)
        )
        used |= {f"{path}/lora/a", f"{path}/lora/b"}
    if others := sorted(adapter.values.keys() - used):
        raise InputError(
            f"the adapter of the {part} trains {some(others)} besides, which a style file cannot hold"
        )
    return result


def _is_plain(update: object) -> TypeGuard[LowRankUpdate]:
    """Whether an update is LoRA's two factors and nothing else."""
    more = ("b_bias", "a_start")
    return type(update) is LowRankUpdate and not any(hasattr(update, name) for name in more)


def _typed(value: np.ndarray, dtype: str, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        typed = np.asarray(value, _TYPES[dtype])
    if not np.all(np.isfinite(typed.astype(np.float32))):
        raise InputError(f"{name}: a factor is too large for {dtype}; write it in float32")
    return typed
