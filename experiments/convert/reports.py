"""What packing or rounding did to merged weights, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from lora_jax.models.gguf_export import Written
from lora_jax.quantisation.measured import Measured, measured, relative
from lora_jax.quantisation.merging import Repacked
from lora_jax.quantisation.registry import name_of

_ENOUGH = 0.9  # of what an adapter changed


class Matrix(NamedTuple):
    """One matrix of the report.

    Attributes:
      group: its name without the number of its layer.
      kind: its type.
      same: whether it is the base's.
      measured: what packing did.
    """

    group: str
    kind: str
    same: bool
    measured: Measured


def of_gguf(written: Sequence[Written]) -> list[Matrix]:
    """The matrices of a GGUF file."""
    return [Matrix(one.group, one.kind, one.same, one) for one in written]


def of_packed(report: Sequence[Repacked]) -> list[Matrix]:
    """The matrices of a packed model."""
    return [Matrix(one.path, name_of(one.format), one.same, one) for one in report]


def of_rounded(path: str, dtype: str, wanted: Array, before: Array, after: Array) -> list[Matrix]:
    """A weight, of every layer if it is in a stack, in another type of floating-point numbers.

    Args:
      path: of the weight.
      dtype: the name of the type.
      wanted: the merged values in float32.
      before: those of the base.
      after: the rounded ones.
    """
    arrays = [np.asarray(value, np.float32) for value in (wanted, before, after)]
    layers = zip(*arrays, strict=True) if "/block/" in path else [tuple(arrays)]
    return [
        Matrix(path, dtype, False, Measured(**measured(*values)))
        for values in layers
        if not np.array_equal(values[0], values[1])
    ]


def table(matrices: Sequence[Matrix]) -> list[str]:
    """A line for the matrices of every name and type, and one for all.

    The rounding error is that of all of them together; behind it are the mean of their own ones, and
    the worst.
    """
    groups: dict[tuple[str, str], list[Matrix]] = {}
    for one in matrices:
        groups.setdefault((one.group, one.kind), []).append(one)
    width = max(32, *(len(name) for name, _ in groups))
    lines = [
        f"{'tensors':<{width}}  {'type':<6} number  copied  change of base  of it kept  "
        f"{'rounding error':>14}  {'mean':>8}  {'worst':>8}"
    ]
    for (name, kind), members in groups.items():
        lines.append(_row(f"{name:<{width}}  {kind:<6}", members))
    return [*lines, _row(f"{'all':<{width}}  {'':<6}", matrices)]


def _row(name: str, members: Sequence[Matrix]) -> str:
    share = kept(members)
    change, error = (
        _together((getattr(one.measured, name), one.measured.squares) for one in members)
        for name in ("changes", "errors")
    )
    each = [one.measured.relative for one in members]
    return (
        f"{name} {len(members):>6}  {sum(one.same for one in members):>6}  {_figure(change):>14}  "
        f"{'' if share is None else f'{share:.1%}':>10}  {_figure(error):>14}  "
        f"{_figure(sum(each) / len(each)):>8}  {_figure(max(each)):>8}"
    )


def _figure(value: float) -> str:
    return f"{value:.6f}" if value else "0"


def kept(members: Sequence[Matrix]) -> float | None:
    """The share of the change of the base that is in the result; None if there is no change."""
    changes = sum(one.measured.changes for one in members)
    return sum(one.measured.kept for one in members) / changes if changes else None


def too_little(members: Sequence[Matrix], remedy: str) -> list[str]:
    """A line that says so where packing rounds much of the change of the base away."""
    share = kept(members)
    if share is None or share >= _ENOUGH:
        return []
    return [
        f"{share:.0%} of what the adapter changed is left: it is finer than the steps of these types. "
        f"{remedy} keeps it"
    ]


def _together(pairs: Iterable[tuple[float, float]]) -> float:
    """Root of the sums of squares of something and of the weights that it is relative to."""
    parts, wholes = zip(*pairs, strict=True)
    return relative(sum(parts), sum(wholes))
