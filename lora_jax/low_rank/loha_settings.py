"""The settings with which LoHa adapts a layer."""

from __future__ import annotations

import dataclasses

from lora_jax.low_rank.update_settings import UpdateSettings


@dataclasses.dataclass(frozen=True)
class LoHaSettings(UpdateSettings):
    """How one layer is adapted; the arguments of `lora_jax.loha` for one target."""
