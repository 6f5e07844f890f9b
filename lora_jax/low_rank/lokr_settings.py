"""The settings with which LoKr adapts a layer."""

from __future__ import annotations

import dataclasses

from lora_jax.checks import integer
from lora_jax.errors import InputError, brief
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.ranges import LARGEST


@dataclasses.dataclass(frozen=True)
class LoKrSettings(UpdateSettings):
    """How one layer is adapted; the arguments of `lora_jax.lokr` for one target.

    Attributes:
      factor: how inputs and outputs divide into two numbers, see `lokr.factorised`.
      decompose_both: whether the first matrix of the Kronecker product may be a product of two, too.
    """

    factor: int = -1
    decompose_both: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("factor", self.factor, least=-1, most=LARGEST)
        if not isinstance(self.decompose_both, bool):
            raise InputError(
                f"decompose_both must be True or False, got {brief(self.decompose_both)}"
            )

    def describe(self) -> str:
        """What is special about the update."""
        factor = f", factor {self.factor}" if self.factor != -1 else ""
        return factor + (", both decomposed" if self.decompose_both else "")
