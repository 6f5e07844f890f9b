"""Methods that train a selection of the model's own leaves: all, the head, biases, the last layers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Key

from lora_jax.checks import Integer, flag, integer
from lora_jax.errors import InputTypeError
from lora_jax.method import Insertion, Method
from lora_jax.methods import common
from lora_jax.methods.added_biases import BiasInsertion
from lora_jax.models.stack import SplitStack, Stack
from lora_jax.partition import Rule
from lora_jax.summary import MatchedLayer
from lora_jax.surgery import pretrained_modules

ANY_BIAS = Rule(common.BIAS.pattern, "bias")  # pre-trained or added
MOST_LAYERS = 10_000  # of which the last ones train


def full(head: str | None = None) -> Method:
    """Full fine-tuning: every parameter trains. Groups: `base`, and `head` if given."""
    return common.method("full", {"head": head}, (), Rule(".*", "base"))


def head_only(head: str) -> Method:
    """Trains the task head on the frozen encoder. Group: `head`."""
    return common.method("head_only", {"head": head}, ())


def bitfit(head: str | None = None, *, add: bool = False) -> Method:
    """BitFit (Zaken et al. 2021; paper, section 5.1): every pre-trained bias trains. Group: `bias`.

    Args:
      head: regular expression for the task head's leaves.
      add: linear layers without a bias get one that starts at 0 and trains, too. Models of the Llama kind
        have few biases or none, so that BitFit as it is published cannot be done there.
    """
    add = flag("add", add)
    insertions, rule = ((BiasInsertion(),), ANY_BIAS) if add else ((), common.BIAS)
    return common.method("bitfit", {"head": head, "add": add}, insertions, rule)


def top_layers(count: Integer = 2, head: str | None = None) -> Method:
    """The last `count` layers train (FT-Top2 of Tables 3, 13 and 14). Group: `top`.

    The final LayerNorm and the embeddings stay frozen, which gives the paper's count.

    Args:
      count: of layers, less than the model has.
      head: regular expression for the task head's leaves.
    """
    count = integer("count", count, most=MOST_LAYERS)
    top = Rule(last_layers(count) + "/.*", "top", inserted="")
    return common.method("top_layers", {"count": count, "head": head}, (CutInsertion(count),), top)


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


def last_layers(count: Integer) -> str:
    """Regular expression for the start of the paths of the last layers, however the stack is cut."""
    return rf"(.*/)?last_({'|'.join(map(str, range(count, 0, -1)))})/block"
