"""The settings that updates of every kind have: rank, scale, dropout, and parts of a fused projection."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, get_args

import numpy as np

from lora_jax.checks import dropout_rate, integer, json_values, names, one_of, positive
from lora_jax.errors import InputError, brief
from lora_jax.low_rank.contraction import Scaling, check_rank, scale
from lora_jax.ranges import LARGEST

TooLarge = Literal["error", "cap", "skip"]
Settings = TypeVar("Settings", bound="UpdateSettings")


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """How one layer is adapted, whatever is inserted.

    Attributes:
      rank: r, of each update.
      alpha: the constant of section 4.1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      dropout: rate on the inputs that the update sees.
      parts: the adapted ones among the `fused` parts of a fused projection; empty: the whole weight.
      fused: names of all parts, in order.
      fused_sizes: sizes of the parts along the first output axis, where they are not equal.
      too_large: what becomes of a layer whose matrix is smaller than the rank: an error, an update of
        the largest rank that it allows with the same scale (see `capped`), or no update.
    """

    rank: int
    alpha: float
    scaling: Scaling = "alpha/r"
    dropout: float = 0.0
    parts: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    fused_sizes: tuple[int, ...] = ()
    too_large: TooLarge = "error"

    # Names of fields that descriptions leave out where they have their defaults.
    optional: ClassVar[tuple[str, ...]] = ()
    # Names of fields that have no meaning for a kind of update: they keep their defaults, users cannot give
    # them, and descriptions leave them out.
    without: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        check_rank(self.rank)
        _check_scale(self.scale, self.alpha)
        dropout_rate("dropout", self.dropout)
        names("parts", self.parts)
        names("fused", self.fused)
        if not isinstance(self.fused_sizes, list | tuple):
            raise InputError(f"fused_sizes must be a list of sizes, got {brief(self.fused_sizes)}")
        for size in self.fused_sizes:
            integer("a size in fused_sizes", size, most=LARGEST)
        one_of("too_large", self.too_large, get_args(TooLarge))

    @classmethod
    def from_arguments(cls: type[Settings], arguments: Mapping[str, Any], where: str) -> Settings:
        """Checks a user's arguments.

        Args:
          arguments: values by field; `alpha` None is the rank, which makes the scale 1.
          where: the target they belong to, for messages.

        Raises:
          ValueError: an unknown argument, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)} - set(cls.without)
        if unknown := sorted(map(str, set(arguments) - known)):
            raise InputError(f"{where}: unknown {brief(unknown)}; known are {sorted(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json_values(arguments).items()
        }
        if cls.has_rank():
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
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in self.without and (name not in self.optional or value != defaults[name])
        }

    @classmethod
    def has_rank(cls) -> bool:
        """Whether rank, and the scale that follows from it, mean something for this kind of update."""
        return "rank" not in cls.without

    def capped(self: Settings, rank: int) -> Settings:
        """The settings of a layer that allows this smaller rank only.

        The scale in front of A B stays, so that capped layers learn as fast as the others: alpha
        follows the rank.
        """
        divisor = float if self.scaling == "alpha/r" else math.sqrt
        # Multiplied first, since 5 * (9 / 9) may be rounded twice and 5 * 9 / 9 is 5.
        return dataclasses.replace(
            self, rank=rank, alpha=self.alpha * divisor(rank) / divisor(self.rank)
        )

    def fitted(self: Settings, limit: int, path: str) -> Settings | str:
        """The settings with a rank that a layer allows, or why it gets no update.

        Args:
          limit: the largest rank of the layer.
          path: of the layer, for the message.

        Raises:
          ValueError: the rank is larger, and `too_large` says that this is an error.
        """
        if self.rank <= limit:
            return self
        if self.too_large == "cap" and limit:
            return self.capped(limit)
        if self.too_large in ("skip", "cap"):
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

    @property
    def plain_alpha(self) -> float:
        """The alpha with which alpha/r is this scale, for programs that know no other scaling."""
        return self.alpha if self.scaling == "alpha/r" else self.alpha * math.sqrt(self.rank)

    def describe(self) -> str:
        """What is special about the update, for `str`; starts with a comma where there is something."""
        return ""

    def __str__(self) -> str:
        parts = f", {','.join(self.parts)} of {','.join(self.fused)}" if self.parts else ""
        scale = f"scale {self.scale:.5g} ({self.scaling})"
        dropout = f"dropout {self.dropout:g}"
        return f"rank {self.rank}, alpha {self.alpha:g}, {scale}, {dropout}{parts}{self.describe()}"


def _check_scale(scale: float, alpha: float) -> None:
    """The factor in front of A B is a float32; it must neither overflow nor vanish there."""
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= scale <= float(limits.max):
        raise InputError(
            f"alpha={alpha} gives the update the scale {scale:g}, which float32 cannot hold; alpha is near "
            "the rank, as a rule"
        )
