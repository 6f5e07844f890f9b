"""The settings with which AdaLoRA adapts a layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from lora_jax.checks import integer
from lora_jax.errors import InputError
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.ranges import LARGEST

_BESIDE_RANK = 1e-5  # PEFT divides by the rank and this


@dataclasses.dataclass(frozen=True)
class AdaLoRASettings(UpdateSettings):
    """How one layer is adapted; the arguments of `lora_jax.adalora` for one target.

    Attributes:
      target_rank: what is left of the rank at the end of training, on average over all adapted weights.
    """

    target_rank: int = 8

    optional: ClassVar[tuple[str, ...]] = ("scaling",)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("target_rank", self.target_rank, most=LARGEST)
        if self.target_rank > self.rank:
            raise InputError(
                f"target_rank={self.target_rank} is larger than rank={self.rank}; ranks are only pruned, so "
                "start with a larger rank, half as much again as a rule"
            )
        if self.scaling != "alpha/r":
            raise InputError(f"adalora has the scaling 'alpha/r' only, got {self.scaling!r}")

    @property
    def scale(self) -> float:
        """The factor in front of the product, of the rank at the start: it stays when ranks are pruned."""
        return self.alpha / (self.rank + _BESIDE_RANK)

    def capped(self, rank: int) -> AdaLoRASettings:
        """The settings of a layer that allows this smaller rank only, with the same scale."""
        return dataclasses.replace(
            self,
            rank=rank,
            alpha=self.scale * (rank + _BESIDE_RANK),
            target_rank=min(self.target_rank, rank),
        )

    def describe(self) -> str:
        """What is special about the update."""
        return f", pruned to rank {self.target_rank} on average"
