"""The settings with which LoRA adapts a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_jax.checks import json_values, positive
from lora_jax.low_rank.contraction import Init, Scaling, check_rank, scale


@dataclasses.dataclass(frozen=True)
class LoRASettings:
    """How one layer is adapted; the arguments of `lora_jax.lora` for one target.

    Attributes:
      rank: r, of each factor pair.
      alpha: the constant of section 4.1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      init: initial values of A, see `contraction.initial_values`.
      std: standard deviation of `gaussian` initial values.
      dropout: rate on the input of A.
      parts: the adapted ones among the `fused` parts of a fused projection; empty: the whole weight.
      fused: names of all parts, in order.
      fused_sizes: sizes of the parts along the first output axis, where they are not equal.
      magnitude: whether the norms of the weight's columns train too (DoRA).
    """

    rank: int
    alpha: float
    scaling: Scaling = "alpha/r"
    init: Init = "kaiming"
    std: float = 0.02
    dropout: float = 0.0
    parts: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    fused_sizes: tuple[int, ...] = ()
    magnitude: bool = False

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        scale(check_rank(self.rank), self.alpha, self.scaling)
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"init must be 'kaiming' or 'gaussian', got {self.init!r}")
        if not isinstance(self.magnitude, bool):
            raise ValueError(f"magnitude must be True or False, got {self.magnitude!r}")

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], where: str) -> LoRASettings:
        """Checks a user's arguments.

        Args:
          arguments: values by field; `alpha` None is the rank, which makes the scale 1.
          where: the target they belong to, for messages.

        Raises:
          ValueError: an unknown argument, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(arguments) - known):
            raise ValueError(f"{where}: unknown {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json_values(arguments).items()
        }
        rank = check_rank(values["rank"], where=where)
        values["alpha"] = rank if values["alpha"] is None else values["alpha"]
        return cls(**values)

    def to_arguments(self) -> dict[str, Any]:
        """The inverse of `from_arguments`, for adapter.json.

        What came after the first adapters were saved is left out where it has its default, so that an
        adapter without it has the same bytes.
        """
        arguments = dataclasses.asdict(self)
        if not self.magnitude:
            del arguments["magnitude"]
        return arguments

    @property
    def scale(self) -> float:
        """The factor in front of A B."""
        return scale(self.rank, self.alpha, self.scaling)

    def __str__(self) -> str:
        parts = f", {','.join(self.parts)} of {','.join(self.fused)}" if self.parts else ""
        magnitude = ", magnitude" if self.magnitude else ""
        return f"rank {self.rank}, alpha {self.alpha:g}{parts}{magnitude}"
