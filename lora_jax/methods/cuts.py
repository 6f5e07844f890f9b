"""Cutting a stack of layers, so that some of them have leaves, or updates, of their own."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Key

from lora_jax.errors import InputTypeError
from lora_jax.method import Insertion
from lora_jax.models.stack import SplitStack, Stack
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import pretrained_modules

MOST_LAYERS = 10_000  # above a cut


@dataclasses.dataclass(frozen=True)
class CutInsertion(Insertion):
    """Cuts every scanned stack of a model below its last layers, so that they can train alone.

    The pre-trained layers below the cut get no gradient computation where nothing below trains.

    Attributes:
      last: number of layers above the cut.
    """

    last: int
    changes_paths: ClassVar[bool] = True

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Replaces the stacks, in place; the leaves of the two parts are slices of the old ones."""
        stacks = [
            (module, name, child)
            for module in pretrained_modules(model).values()
            if not isinstance(module, SplitStack)  # its parts are cut with it
            for name, child in vars(module).items()
            if isinstance(child, Stack | SplitStack)
        ]
        if not stacks:
            raise InputTypeError(
                f"the {type(model).__name__} holds no lora_jax.models.stack.Stack, whose last "
                f"{self.last} layers could be taken apart. For a model of your own with a list of "
                "layers write the rules as a Method: Method(spec, (), (Rule(r'layers/(10|11)/.*', "
                "'top'),))"
            )
        for module, name, stack in stacks:
            setattr(module, name, stack.cut(self.last))

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """Nothing is inserted."""
        return []
