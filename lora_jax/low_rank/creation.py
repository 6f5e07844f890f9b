"""The update that settings ask for, at its start."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Key

from lora_jax.errors import InputError
from lora_jax.low_rank.adalora import AdaLoRAUpdate
from lora_jax.low_rank.adalora_settings import AdaLoRASettings
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.fused import FusedUpdate, part_sizes
from lora_jax.low_rank.ia3 import IA3Settings, IA3Update
from lora_jax.low_rank.loha import LoHaUpdate
from lora_jax.low_rank.loha_settings import LoHaSettings
from lora_jax.low_rank.lokr import LoKrUpdate
from lora_jax.low_rank.lokr_settings import LoKrSettings
from lora_jax.low_rank.pairs import LowRankUpdate
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.low_rank.updates import PartUpdate, WeightUpdate
from lora_jax.low_rank.vera import VeRAUpdate
from lora_jax.low_rank.vera_settings import VeRASettings
from lora_jax.low_rank.weights import WeightView

_KINDS: dict[type[UpdateSettings], type[PartUpdate]] = {
    AdaLoRASettings: AdaLoRAUpdate,
    IA3Settings: IA3Update,
    LoHaSettings: LoHaUpdate,
    LoKrSettings: LoKrUpdate,
    VeRASettings: VeRAUpdate,
}


def kind_of(settings: UpdateSettings) -> type[PartUpdate]:
    """The class of the updates that settings ask for."""
    if isinstance(settings, LoRASettings):
        return DoRAUpdate if settings.magnitude else LowRankUpdate
    return _KINDS[type(settings)]


def new_update(
    weight: WeightView, settings: UpdateSettings, key: Key[Array, ""], path: str
) -> WeightUpdate:
    """A new update, which changes nothing yet.

    Args:
      weight: that it is for.
      settings: rank, alpha, kind, parts.
      key: random key; stacked layers each draw their own values.
      path: of the weight's layer, for messages.

    Raises:
      ValueError: bad rank or parts.
    """
    kind = kind_of(settings)
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
