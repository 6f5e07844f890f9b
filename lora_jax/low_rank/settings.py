"""The settings with which LoRA adapts a layer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

from lora_jax.checks import WIDEST, integer, not_negative, one_of, positive
from lora_jax.errors import InputError, brief
from lora_jax.low_rank.contraction import Contraction, Init
from lora_jax.low_rank.update_settings import UpdateSettings
from lora_jax.ranges import LARGEST

Gradient = Literal["plain", "lora_fa", "lora_pro"]
# Starts of both factors that are not zero; what they start with is taken off again.
STARTS = ("pissa", "olora", "lora_ga")
# The order of the first adapters, whose bytes stay.
_ORDER = (
    "rank", "alpha", "scaling", "init", "std", "dropout", "parts", "fused", "fused_sizes",
    "magnitude", "b_bias", "lookup_only", "too_large", "axes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LoRASettings(UpdateSettings):
    """How one layer is adapted; the arguments of `lora_jax.lora` for one target.

    Attributes:
      init: initial values, see `contraction.initial_values` and, where both factors have some, `starts`.
      std: standard deviation of `gaussian` initial values.
      magnitude: whether the norms of the weight's columns train too (DoRA).
      b_bias: whether B has a bias: scale * (x A B + bias), PEFT's `lora_bias`.
      lookup_only: of a table whose transpose is the output layer too: the output layer stays as it is.
      axes: of a parameter that is adapted without a layer, a letter for the role of each axis, see
        `Contraction.from_letters`; empty for layers.
      b_rate: learning rate of B, relative to A's (LoRA+).
      gradient: what becomes of the factors' gradients, see `gradients`.
      svd_iterations: of the approximate decomposition for `pissa`; 0 computes the exact one.
      gamma: of `lora_ga`: the start is as large as 1 / sqrt(gamma).
      seed: of the frozen A of `lora_fa`.
    """

    init: Init = "kaiming"
    std: float = 0.02
    magnitude: bool = False
    b_bias: bool = False
    lookup_only: bool = False
    axes: str = ""
    b_rate: float = 1.0
    gradient: Gradient = "plain"
    svd_iterations: int = 0
    gamma: float = 16.0
    seed: int = 0

    optional: ClassVar[tuple[str, ...]] = (
        "magnitude", "b_bias", "lookup_only", "too_large", "axes",
        "b_rate", "gradient", "svd_iterations", "gamma", "seed",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("init", self.init, get_args(Init))
        if not not_negative("std", self.std, WIDEST) and self.init == "gaussian":
            raise InputError("std=0 makes both factors 0, and then nothing ever trains")
        for name in ("magnitude", "b_bias", "lookup_only"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {brief(getattr(self, name))}")
        if self.b_bias and self.magnitude:
            raise InputError("b_bias and magnitude (DoRA) have no meaning together; choose one")
        positive("b_rate", self.b_rate)
        positive("gamma", self.gamma)
        one_of("gradient", self.gradient, get_args(Gradient))
        integer("svd_iterations", self.svd_iterations, least=0, most=1000)
        integer("seed", self.seed, least=0, most=LARGEST)
        self._check_together()
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

    def _check_together(self) -> None:
        """Raises ValueError for a setting that another one makes meaningless."""
        if self.svd_iterations and self.init != "pissa":
            raise InputError(f"svd_iterations is of init='pissa', and init is {self.init!r}")
        if self.gradient == "lora_fa":
            if self.init in STARTS:
                raise InputError(
                    f"gradient='lora_fa' freezes a random A, and init={self.init!r} starts from another one"
                )
            if self.b_rate != 1:
                raise InputError("b_rate compares B with A, and A does not train with lora_fa")
        elif self.seed:
            raise InputError(
                "seed is of the frozen A of gradient='lora_fa'; runs have seeds of their own"
            )
        if self.gradient != "plain" and self.magnitude:
            raise InputError(
                f"gradient={self.gradient!r} is made for W + A B, and magnitude (DoRA) is another form; "
                "choose one"
            )

    @property
    def is_plain(self) -> bool:
        """Whether rank, alpha and initial values are only numbers: scale A B, whatever these are."""
        return self.init not in STARTS and self.gradient == "plain" and self.b_rate == 1

    def fitted(self, limit: int, path: str) -> LoRASettings | str:
        """The settings with a rank that a layer allows; see the base class.

        LoRA-GA takes twice as many singular vectors as the rank.
        """
        if self.init != "lora_ga" or self.rank <= limit // 2:
            return super().fitted(limit, path)
        reason = (
            f"init='lora_ga' takes twice as many singular vectors as the rank, {self.rank}, and its smaller "
            f"side is {limit}"
        )
        if self.too_large == "error":
            raise InputError(
                f"{path or 'the model'}: {reason}; use a rank up to {limit // 2}, or too_large='cap' or "
                f"'skip', or exclude={path!r}"
            )
        fitted = super().fitted(limit // 2, path)
        return reason if isinstance(fitted, str) else fitted

    def to_arguments(self) -> dict[str, Any]:
        """The inverse of `from_arguments`; see there."""
        values = super().to_arguments()
        return {name: values[name] for name in _ORDER if name in values} | values

    def describe(self) -> str:
        """What is special about the update."""
        magnitude = ", magnitude" if self.magnitude else ""
        magnitude += ", bias of B" if self.b_bias else ""
        magnitude += ", lookups only" if self.lookup_only else ""
        magnitude += f", axes {self.axes}, formed at every read" if self.axes else ""
        magnitude += f", starts by {self.init}" if self.init in STARTS else ""
        magnitude += " (start_from_gradients, or the trainer)" if self.init == "lora_ga" else ""
        magnitude += f", B learns {self.b_rate:g} times as fast" if self.b_rate != 1 else ""
        magnitude += f", gradient of {self.gradient}" if self.gradient != "plain" else ""
        return magnitude
