"""An adaptation method: what is inserted into a pre-trained model, and which leaves train.

Every row of the paper's tables is one `Method`: a list of insertions and an ordered list of rules
that label each leaf `frozen` or with the name of a trainable group. Methods combine with `+`.
Training code never asks which method runs. The constructors are in `methods`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition
from lora_jax.partition import Labels, Rule
from lora_jax.summary import MatchedLayer, Summary, summarise


@runtime_checkable
class Insertion(Protocol):
    """Something a method puts into a model."""

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Inserts, in place."""
        ...

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """What was inserted, for the summary."""
        ...


@dataclasses.dataclass(frozen=True)
class Method:
    """An adaptation method.

    Attributes:
      spec: constructor names and arguments, enough to build the method again (`to_json`).
      insertions: applied in order by `insert`, those with `changes_paths` (cuts) first.
      rules: the first rule whose pattern matches a leaf's path gives its group.
    """

    spec: tuple[tuple[str, Any], ...]
    insertions: tuple[Insertion, ...]
    rules: tuple[Rule, ...]

    def __add__(self, other: Method) -> Method:
        return Method(
            self.spec + other.spec, self.insertions + other.insertions, self.rules + other.rules
        )

    @property
    def special(self) -> tuple[int, int]:
        """Numbers of special tokens, before and behind the input, that examples must have."""
        found = [i.special for i in self.insertions if hasattr(i, "special")]
        if len(found) > 1:
            raise ValueError(f"{self.name}: two methods have special tokens; a method takes one")
        return found[0] if found else (0, 0)

    @property
    def name(self) -> str:
        """Names of the constructors, joined by +."""
        return "+".join(name for name, _ in self.spec)

    def __str__(self) -> str:
        """Constructor calls with their arguments, joined by +."""
        return " + ".join(f"{name}({_shown(arguments)})" for name, arguments in self.spec)

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> nnx.Module:
        """Returns an adapted model that shares the arrays of `model`; `model` is left as it is.

        Works on abstract models too (inside `nnx.eval_shape`).

        Raises:
          ValueError: a rule matches no layer, or a rank or alpha does not fit.
          TypeError: a matched layer has no form for the method.
        """
        adapted = nnx.clone(model)
        moving = lambda item: not getattr(item[1], "changes_paths", False)  # noqa: E731
        for index, insertion in sorted(enumerate(self.insertions), key=moving):
            insertion.insert(adapted, jax.random.fold_in(key, index))
        return adapted

    def labels(self, adapted: nnx.Module) -> Labels:
        """The group of every parameter of an adapted model, by path."""
        return partition.labels(partition.parameters(adapted), self.rules)

    def summary(self, adapted: nnx.Module) -> Summary:
        """What the method did to a model: matched layers, groups, counts and bytes. Printable."""
        matched = [row for insertion in self.insertions for row in insertion.matches(adapted)]
        return summarise(self.name, matched, partition.parameters(adapted), self.labels(adapted))

    def to_json(self) -> list[dict[str, Any]]:
        """A description that `from_json` turns into an equal method."""
        return [{"name": name, "arguments": dict(arguments)} for name, arguments in self.spec]


def _shown(arguments: Mapping[str, Any]) -> str:
    """name=value, without what is empty; a mapping's values by key."""
    parts = []
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            parts += [f"{key!r}: {_shown(own)}" for key, own in value.items()]
        elif value is not None and value != []:
            parts.append(f"{name}={value}")
    return ", ".join(parts)
