"""Taking the last layers of a scanned stack apart, so that they can train alone (FT-Top2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Key

from lora_jax.models.stack import SplitStack, Stack
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import own_modules


@dataclasses.dataclass(frozen=True)
class CutInsertion:
    """Cuts every stack of a model `last` layers below its end.

    The pre-trained layers below the cut get no gradient computation where nothing below trains.
    """

    last: int
    changes_paths: ClassVar[bool] = True

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Replaces the stacks, in place; the leaves of the two parts are slices of the old ones."""
        found = False
        for module in own_modules(model).values():
            if isinstance(module, SplitStack):
                continue  # its parts are cut with it
            for name, child in list(vars(module).items()):
                if isinstance(child, Stack | SplitStack):
                    setattr(module, name, child.cut(self.last))
                    found = True
        if not found:
            raise TypeError(
                f"the {type(model).__name__} holds no lora_jax.models.stack.Stack, whose last "
                f"{self.last} layers could be taken apart. For a model of your own with a list of "
                "layers write the rules as a Method: Method(spec, (), (Rule(r'layers/(10|11)/.*', "
                "'top'),))"
            )

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """Nothing is inserted."""
        return []


def last_layers(count: int) -> str:
    """Regular expression for the start of the paths of the last layers, however the stack is cut."""
    return rf"(.*/)?last_({'|'.join(map(str, range(count, 0, -1)))})/block"
