"""The settings with which VeRA adapts a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from lora_jax.checks import integer, positive
from lora_jax.errors import InputError
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.ranges import LARGEST

Own = TypeVar("Own", bound="VeRASettings")
_WITHOUT = ("alpha", "scaling")  # the vectors are the scale


@dataclasses.dataclass(frozen=True)
class VeRASettings(UpdateSettings):
    """How VeRA adapts one layer; the arguments of `lora_jax.vera` for one target.

    The rank may be larger than the matrix: it adds one trained value each, not a row and a column.

    Attributes:
      d_initial: what the vector d starts with.
      seed: from which the shared matrices are drawn.
      fan_in: number of inputs that the size of A is for; 0: that of the weight itself, or, in a method, the
        largest of its layers.
    """

    rank: int = 256
    alpha: float = 1.0
    d_initial: float = 0.1
    seed: int = 0
    fan_in: int = 0

    optional: ClassVar[tuple[str, ...]] = ("too_large", "fan_in")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("d_initial", self.d_initial)  # with 0 in both vectors nothing would ever train
        integer("seed", self.seed, least=0, most=LARGEST)
        integer("fan_in", self.fan_in, least=0, most=LARGEST)
        if self.too_large == "cap":
            raise InputError("too_large='cap' has no meaning here: VeRA's rank may be of any size")

    @classmethod
    def from_arguments(cls: type[Own], arguments: Mapping[str, Any], where: str) -> Own:
        """Checks a user's arguments; see the base class. There is no alpha and no scaling.

        Raises:
          ValueError: an unknown argument, or a value out of range.
        """
        if taken := [name for name in _WITHOUT if name in arguments]:
            raise InputError(
                f"{where}: VeRA has no {taken[0]}, its trained vectors are the scale; leave it out, and "
                "set d_initial if the update shall start to train faster"
            )
        return super().from_arguments({**arguments, "alpha": cls.alpha}, where)

    def to_arguments(self) -> dict[str, Any]:
        """The inverse of `from_arguments`, for adapter.json."""
        values = super().to_arguments()
        return {name: value for name, value in values.items() if name not in _WITHOUT}

    def fitted(self: Own, limit: int, path: str) -> Own | str:
        """These settings, whatever the largest rank of a matrix of the layer is."""
        return self

    @property
    def scale(self) -> float:
        """The factor in front of the product: 1."""
        return 1.0

    def __str__(self) -> str:
        parts = f", {','.join(self.parts)} of {','.join(self.fused)}" if self.parts else ""
        shared = f"A and B from seed {self.seed}"
        return f"rank {self.rank}, d from {self.d_initial:g}, {shared}, dropout {self.dropout:g}{parts}"
