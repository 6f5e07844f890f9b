"""The settings with which LoRA adapts a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from lora_jax.checks import (
    WIDEST,
    dropout_rate,
    integer,
    json_values,
    names,
    not_negative,
    one_of,
    positive,
)
from lora_jax.errors import InputError, brief
from lora_jax.low_rank.contraction import Contraction, Init, Scaling, check_rank, scale
from lora_jax.ranges import LARGEST

TooLarge = Literal["error", "cap", "skip"]


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
      too_large: what becomes of a layer whose matrix is smaller than the rank: an error, an update of
        the largest rank that it allows with the same scale (see `capped`), or no update.
      b_bias: whether B has a bias: scale * (x A B + bias), PEFT's `lora_bias`.
      lookup_only: of a table whose transpose is the output layer too: the output layer stays as it is.
      axes: of a parameter that is adapted without a layer, a letter for the role of each axis, see
        `Contraction.from_letters`; empty for layers.
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
    b_bias: bool = False
    lookup_only: bool = False
    too_large: TooLarge = "error"
    axes: str = ""

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        check_rank(self.rank)
        _check_scale(self.scale, self.alpha)
        one_of("init", self.init, get_args(Init))
        if not not_negative("std", self.std, WIDEST) and self.init == "gaussian":
            raise InputError("std=0 makes both factors 0, and then nothing ever trains")
        dropout_rate("dropout", self.dropout)
        names("parts", self.parts)
        names("fused", self.fused)
        if not isinstance(self.fused_sizes, list | tuple):
            raise InputError(f"fused_sizes must be a list of sizes, got {brief(self.fused_sizes)}")
        for size in self.fused_sizes:
            integer("a size in fused_sizes", size, most=LARGEST)
        for name in ("magnitude", "b_bias", "lookup_only"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {brief(getattr(self, name))}")
        if self.b_bias and self.magnitude:
            raise InputError("b_bias and magnitude (DoRA) have no meaning together; choose one")
        one_of("too_large", self.too_large, get_args(TooLarge))
        if self.axes != "":
            Contraction.from_letters(self.axes)
            if self.dropout:
                raise InputError(
                    f"dropout={self.dropout} needs a layer with inputs; a parameter with axes has none"
                )
            if self.b_bias or self.lookup_only:
                raise InputError(
                    "b_bias and lookup_only need a layer; a parameter with axes has none"
                )

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
        if unknown := sorted(map(str, set(arguments) - known)):
            raise InputError(f"{where}: unknown {brief(unknown)}; known are {sorted(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json_values(arguments).items()
        }
        rank = check_rank(values["rank"], where=where)
        values["alpha"] = rank if values["alpha"] is None else values["alpha"]
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def to_arguments(self) -> dict[str, Any]:
        """The inverse of `from_arguments`, for adapter.json.

        What came after the first adapters were saved is left out where it has its default, so that an
        adapter without it has the same bytes.
        """
        arguments = dataclasses.asdict(self)
        for name in ("magnitude", "b_bias", "lookup_only", "too_large", "axes"):
            if arguments[name] == getattr(LoRASettings, name):
                del arguments[name]
        return arguments

    def capped(self, rank: int) -> LoRASettings:
        """The settings of a layer that allows this smaller rank only.

        The scale in front of A B stays, so that capped layers learn as fast as the others: alpha
        follows the rank.
        """
        alpha = self.scale * rank / scale(rank, rank, self.scaling)
        return dataclasses.replace(self, rank=rank, alpha=alpha)

    def fitted(self, limit: int, path: str) -> LoRASettings | str:
        """The settings with a rank that a layer allows, or why it gets no update.

        Args:
          limit: the largest rank of the layer.
          path: of the layer, for the message.

        Raises:
          ValueError: the rank is larger, and `too_large` says that this is an error.
        """
        if self.rank <= limit:
            return self
        if self.too_large == "cap":
            return self.capped(limit)
        if self.too_large == "skip":
            return f"rank {self.rank} is larger than its smaller side, {limit}"
        raise InputError(
            f"rank {self.rank} is larger than the matrix for {path or 'the model'}: its smaller side is "
            f"{limit}; use a rank from 1 to {limit}, or too_large='cap' (such a layer gets the largest "
            f"rank that it allows) or 'skip', or exclude={path!r}"
        )

    @property
    def scale(self) -> float:
        """The factor in front of A B."""
        return scale(self.rank, self.alpha, self.scaling)

    def __str__(self) -> str:
        parts = f", {','.join(self.parts)} of {','.join(self.fused)}" if self.parts else ""
        magnitude = ", magnitude" if self.magnitude else ""
        magnitude += ", bias of B" if self.b_bias else ""
        magnitude += ", lookups only" if self.lookup_only else ""
        magnitude += f", axes {self.axes}, formed at every read" if self.axes else ""
        scale = f"scale {self.scale:g} ({self.scaling})"
        dropout = f"dropout {self.dropout:g}"
        return f"rank {self.rank}, alpha {self.alpha:g}, {scale}, {dropout}{parts}{magnitude}"


def _check_scale(scale: float, alpha: float) -> None:
    """The factor in front of A B is a float32; it must neither overflow nor vanish there."""
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= scale <= float(limits.max):
        raise InputError(
            f"alpha={alpha} gives the update the scale {scale:g}, which float32 cannot hold; alpha is near "
            "the rank, as a rule"
        )
