"""The update that settings ask for, at its start."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Key

from lora_jax.errors import InputError
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.fused_parts import part_sizes
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.updates import FusedUpdate, LowRankUpdate, WeightUpdate
from lora_jax.low_rank.weights import WeightView


def new_update(
    weight: WeightView, settings: LoRASettings, key: Key[Array, ""], path: str
) -> WeightUpdate:
    """A new update: one factor of every pair is zero.

    Args:
      weight: that it is for.
      settings: rank, alpha, kind, parts.
      key: random key; stacked layers each draw their own values.
      path: of the weight's layer, for messages.

    Raises:
      ValueError: bad rank or parts.
    """
    kind = DoRAUpdate if settings.magnitude else LowRankUpdate
    if not settings.fused:
        if settings.parts:
            raise InputError(
                f"parts {settings.parts} of {path} need `fused`: the names of all parts"
            )
        return kind.create(weight, settings, key, path)
    sizes = part_sizes(settings, weight.shape[weight.roles.outputs[0]], path)
    updates = {}
    for name, part in zip(settings.fused, weight.parts(sizes), strict=True):
        if name in settings.parts:
            part_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            updates[name] = kind.create(part, settings, part_key, f"{path} part {name}")
    return FusedUpdate(updates, settings.fused, sizes)
