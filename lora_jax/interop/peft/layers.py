"""Layers of a stack that differ: the runs of equal layers, and the method that adapts each run.

PEFT adapts every layer by itself; ours share one update with an axis for the layers. Where layers differ in
rank, alpha or type, or some are not adapted, the stack is cut (`cut` of `lora`), and every run of equal
layers has an update of its own. So nothing is padded, and no number changes.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_jax import methods
from lora_jax.interop.peft.names import ROOT
from lora_jax.method import Method

_BLOCK = "layers/block/"
_CUT = re.compile(r"(?P<before>(.*/)?layers/)(first|last_(?P<last>\d+))/block/(?P<after>.*)")


@dataclasses.dataclass(frozen=True)
class Spec:
    """How one module of one layer is adapted: what the constructor of our method is told of it.

    Attributes:
      values: names and values of arguments.
      dtype: of its leaves, which is one for all layers of a run.
    """

    values: tuple[tuple[str, Any], ...]
    dtype: str = "float32"

    @classmethod
    def of(cls, arguments: Mapping[str, Any], dtype: str) -> Spec:
        """From arguments; those that are False are left out, since that is their default."""
        kept = [(name, value) for name, value in arguments.items() if value is not False]
        return cls(tuple(kept), dtype)

    def arguments(self) -> dict[str, Any]:
        """The arguments."""
        return dict(self.values)


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs of equal layers of a stack.

    Attributes:
      depth: number of layers.
      starts: the first layer of every run but the first run's.
    """

    depth: int
    starts: tuple[int, ...] = ()

    @property
    def cut(self) -> tuple[int, ...]:
        """The argument `cut` of `lora`."""
        return tuple(self.depth - start for start in self.starts)

    def layers(self) -> list[range]:
        """The layers of every run."""
        ends = (0, *self.starts, self.depth)
        return [range(*pair) for pair in itertools.pairwise(ends)]

    def path(self, path: str, run: range) -> str:
        """A path in a run of one below the uncut stack."""
        if not self.starts or _BLOCK not in path:
            return path
        name = f"last_{self.depth - run.start}" if run.start else "first"
        return path.replace(_BLOCK, f"layers/{name}/block/")


def runs_of(marks: Sequence[object]) -> Runs:
    """The runs of layers with equal marks."""
    starts = tuple(i for i in range(1, len(marks)) if marks[i] != marks[i - 1])
    return Runs(len(marks), starts)


def uncut(path: str, depth: int) -> tuple[str, int]:
    """The path that one in a cut stack has below the uncut one, and the number of its first layer."""
    match = _CUT.fullmatch(path)
    if match is None:
        return path, 0
    first = depth - int(match["last"]) if match["last"] else 0
    return f"{match['before']}block/{match['after']}", first


def lora_of(
    specs: Mapping[str, Spec], runs: Runs, *, dropout: float, bias: str, head: str | None
) -> Method:
    """The method that adapts modules as their specs say.

    Args:
      specs: by path, in the cut stack.
      runs: of the stack.
      dropout: of all branches.
      bias: which biases train.
      head: regular expression for the head's leaves.
    """
    targets = {target_of(path): spec.arguments() for path, spec in specs.items()}
    return methods.lora(
        targets, dropout=dropout, bias=bias, head=head, cut=runs.cut,  # type: ignore[arg-type]
    )  # fmt: skip


def target_of(path: str) -> str:
    """The end of a path that names its module alone."""
    short = path.removeprefix(ROOT).removeprefix("encoder/")
    return short.removeprefix(_BLOCK)
