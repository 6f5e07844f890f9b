"""What a plan compares: ways to tune one model, each a method over a base in some form."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from lora_jax import methods
from lora_jax.method import Method
from lora_jax.models.parts import FLOAT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A column of the comparison.

    Attributes:
      name: its heading.
      method: what is inserted and trained.
      base_dtype: type of the frozen base and of computation, float32 or bfloat16.
      base_format: of its linear layers: float, or a name of `quantisation.registry.FORMATS`.
    """

    name: str
    method: Method
    base_dtype: str
    base_format: str = FLOAT


def configured(config: ConfigDict, head: str | None) -> Variant:
    """The config's own method over its base.

    Args:
      config: of the plan.
      head: pattern of a task head's leaves, which train with every method.

    Raises:
      ValueError: the method is unknown, or its arguments are wrong.
    """
    method = methods.create(head=head, **config.method.to_dict())
    return Variant(
        name=config.method.name, method=method, base_dtype=str(config.base_dtype),
        base_format=config.model.base_format,
    )  # fmt: skip


def compared(config: ConfigDict, head: str | None) -> list[Variant]:
    """What a plan prints side by side; the last one is what the others are divided by.

    Args:
      config: of the plan.
      head: pattern of a task head's leaves, which train with every method.

    Raises:
      ValueError: the method is unknown, or its arguments are wrong.
    """
    own = configured(config, head)
    plain = dataclasses.replace(own, base_format=FLOAT)
    full = dataclasses.replace(plain, name="full", method=methods.full(head))
    packed = [] if own.base_format == FLOAT else [own.base_format]
    over = [
        dataclasses.replace(own, name=f"{own.name}, {form}", base_format=form)
        for form in dict.fromkeys([*packed, *config.packed])
    ]
    return [plain, *over, full]
