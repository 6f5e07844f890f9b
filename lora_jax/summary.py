"""What a method did to a model, as data and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from lora_jax import partition
from lora_jax.state import Kind, kind, value

IN_TRAINING: Mapping[Kind, str] = {
    "statistic": "kept where the model writes it",
    "random": "advances",
    "cache": "not kept",
}  # what a summary says of state


@dataclasses.dataclass(frozen=True)
class MatchedLayer:
    """One layer that a method put something into.

    Attributes:
      rule: the regular expression that chose the layer.
      path: of the layer.
      shape: of the weight that is adapted, stack axes included.
      how: what was inserted, in words.
      parameters: number of values that were added.
      rank: of a low-rank update; None for what has no rank.
      parts: adapted parts of a fused projection; empty for the whole weight.
      scale: in front of a low-rank update; None for what has no rank.
    """

    rule: str
    path: str
    shape: tuple[int, ...]
    how: str
    parameters: int
    rank: int | None = None
    parts: tuple[str, ...] = ()
    scale: float | None = None


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """One layer that a rule named and that a method left as it was.

    Attributes:
      rule: that chose the layer.
      path: of the layer.
      reason: why it has no update, in words.
    """

    rule: str
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Totals of one group of leaves."""

    name: str
    parameters: int
    bytes: int
    leaves: int


@dataclasses.dataclass(frozen=True)
class StateGroup:
    """Totals of the state of one class of Variables; see the table of `state`.

    Attributes:
      name: of the class.
      kind: what that is to a training run.
      leaves, values, bytes: totals.
    """

    name: str
    kind: Kind
    leaves: int
    values: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """Matched and skipped layers, the groups of a model, and its state. `str()` gives a table."""

    method: str
    layers: tuple[MatchedLayer, ...]
    groups: tuple[Group, ...]
    skipped: tuple[SkippedLayer, ...] = ()
    state: tuple[StateGroup, ...] = ()

    @property
    def trainable(self) -> tuple[Group, ...]:
        """The groups that train."""
        return tuple(group for group in self.groups if group.name != partition.FROZEN)

    def counts(self) -> dict[str, int]:
        """Parameters by group, with `trainable` and `total`, for a run record."""
        by_group = {group.name: group.parameters for group in self.groups}
        trainable = sum(group.parameters for group in self.trainable)
        return {**by_group, "trainable": trainable, "total": sum(by_group.values())}

    def __str__(self) -> str:
        lines = [f"method {self.method}"]
        if self.layers:
            header = ("rule", "layer", "weight", "how", "parameters")
            lines += _table([header, *(_layer_row(layer) for layer in self.layers)])
        if self.skipped:
            skipped = ((layer.rule, layer.path, layer.reason) for layer in self.skipped)
            lines += _table([("rule", "layer without an update", "why"), *skipped])
        rows = [("group", "leaves", "parameters", "bytes")]
        rows += [
            (g.name, str(g.leaves), f"{g.parameters:,}", readable_bytes(g.bytes))
            for g in self.groups
        ]
        lines += _table(rows)
        if self.state:
            header = ("state", "leaves", "values", "bytes", "in training")
            lines += _table([header, *(_state_row(group) for group in self.state)])
        counts = self.counts()
        share = 100 * counts["trainable"] / max(counts["total"], 1)
        lines.append(
            f"trainable {counts['trainable']:,} of {counts['total']:,} parameters ({share:.3g}%), "
            f"{readable_bytes(sum(g.bytes for g in self.trainable))}"
        )
        return "\n".join(lines)


def summarise(
    method: str,
    matched: Sequence[MatchedLayer],
    params: Mapping[str, Any],
    labels: Mapping[str, str],
    skipped: Sequence[SkippedLayer] = (),
    leaves: Mapping[str, Any] | None = None,
    packed: Mapping[str, int] | None = None,
) -> Summary:
    """Collects a summary; frozen leaves come last.

    Args:
      method: its name.
      matched: the layers.
      params: arrays or shapes of the parameters by path.
      labels: the group of each.
      skipped: layers that the method was to change and did not.
      leaves: of the model's state, see `state.leaves`.
      packed: values that arrays of packed weights stand for, see `quantisation.weight.value_counts`.
    """
    names = [*sorted(set(labels.values()) - {partition.FROZEN}), partition.FROZEN]
    groups = []
    for name in names:
        members = {path: leaf for path, leaf in params.items() if labels[path] == name}
        values = partition.count(members, packed)
        groups.append(Group(name, values, partition.size_bytes(members), len(members)))
    state = _state_groups(leaves or {})
    return Summary(method, tuple(matched), tuple(groups), tuple(skipped), state)


def _state_groups(leaves: Mapping[str, Any]) -> tuple[StateGroup, ...]:
    of_class: dict[tuple[Kind, str], dict[str, Any]] = {}
    for path, leaf in leaves.items():
        if kind(leaf) in IN_TRAINING:
            name = type(leaf).__name__ if isinstance(leaf, nnx.Variable) else "array"
            for number, array in enumerate(jax.tree.leaves(value(leaf))):
                of_class.setdefault((kind(leaf), name), {})[f"{path} {number}"] = array
    return tuple(
        StateGroup(name, kind, len(arrays), partition.count(arrays), partition.size_bytes(arrays))
        for (kind, name), arrays in sorted(of_class.items())
    )


def readable_bytes(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _layer_row(layer: MatchedLayer) -> tuple[str, ...]:
    shape = "x".join(map(str, layer.shape))
    return layer.rule, layer.path, shape, layer.how, f"{layer.parameters:,}"


def _state_row(group: StateGroup) -> tuple[str, ...]:
    size = readable_bytes(group.bytes)
    return group.name, str(group.leaves), f"{group.values:,}", size, IN_TRAINING[group.kind]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
