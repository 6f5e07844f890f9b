"""How many bytes the collectives of a compiled program move, read from its text.

Bytes are those that one device sends while the program runs once, if the n devices of a group use the
bandwidth-optimal algorithm for a ring:

| kind | bytes |
|---|---|
| all-gather | result x (n - 1) / n |
| reduce-scatter | operand x (n - 1) / n |
| all-reduce | 2 x operand x (n - 1) / n: a reduce-scatter and an all-gather |
| all-to-all | operand x (n - 1) / n |
| collective-permute | operand |

A group of one device moves nothing and is not counted. The body of a loop counts as often as it runs
(once where the text does not say how often, see `hlo.trip_count`); of a conditional's branches the one
that moves most bytes counts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable

from lora_jax.costs import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{(?P<list>[\d,]*)\}|\[\d+,(?P<iota>\d+)\]<="
    r"|mesh\[(?P<sizes>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\})"
)
_FURTHER = re.compile(r"-(done|update)$")
_PASSED_ON = ("bitcast", "get-tuple-element", "reshape", "copy")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The traffic of one kind of collective.

    Attributes:
      bytes: sent by one device.
      executions: how often such operations run; one operation may move several arrays.
    """

    bytes: int = 0
    executions: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.executions + other.executions)

    def __mul__(self, times: int) -> Traffic:
        return Traffic(self.bytes * times, self.executions * times)


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes that a device sends while the program runs once, by kind of collective.

    Args:
      text: `compiled.as_text()` of a CPU, GPU or TPU program.

    Raises:
      ValueError: the text is not that of a compiled program.
    """
    return {kind: moved.bytes for kind, moved in traffic(text).items()}


def traffic(text: str) -> dict[str, Traffic]:
    """Bytes and executions by kind, for the kinds of collectives that the program has.

    Args:
      text: as in `collective_bytes`.

    Raises:
      ValueError: the text is not that of a compiled program.
    """
    program = hlo.parse(text)
    return dict(_Count(program).computation(program.entry, fused=False))


class _Count:
    def __init__(self, program: hlo.Program):
        self._program = program
        # A TPU spreads one asynchronous collective over several fusions. All of them repeat the
        # instruction with the same channel, and one of them is marked as the start.
        self._started = {
            channel
            for computation in program.computations.values()
            if _starts(computation)
            for channel in _channels(computation)
        }

    @functools.cache  # noqa: B019, the object lives only for one call of `traffic`
    def computation(self, name: str, fused: bool) -> dict[str, Traffic]:
        within = self._program.computations[name]
        return _summed(self._instruction(i, within, fused) for i in within.instructions.values())

    def _instruction(
        self, instruction: hlo.Instruction, within: hlo.Computation, fused: bool
    ) -> dict[str, Traffic]:
        if _FURTHER.search(instruction.opcode):
            return {}
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            continued = _channel(instruction) in self._started and not _starts(within)
            return {} if continued else self._collective(kind, instruction, within, fused)
        called = instruction.called()
        if not called:
            return {}
        parts = [
            self.computation(name, fused or instruction.opcode == "fusion")
            for names in called.values()
            for name in names
        ]
        if instruction.opcode == "conditional":
            return max(parts, key=lambda part: sum(moved.bytes for moved in part.values()))
        times = 1
        if instruction.opcode == "while":
            times = hlo.trip_count(self._program, instruction, within)
        return {kind: moved * times for kind, moved in _summed(parts).items()}

    def _collective(
        self, kind: str, instruction: hlo.Instruction, within: hlo.Computation, fused: bool
    ) -> dict[str, Traffic]:
        operand = sum(
            hlo.size_bytes(within.instructions[name].type) for name in instruction.operands
        )
        if kind == "collective-permute":
            pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attributes)
            moves = any(source != target for source, target in pairs)
            return {kind: Traffic(operand, 1)} if moves else {}
        n = _group_size(instruction.attributes) or self._program.devices
        if n == 1:
            return {}
        if kind == "all-gather":
            return {kind: Traffic(operand * (n - 1), 1)}
        # A TPU's reduce-scatter is a fusion of an all-reduce and the slice that a device keeps.
        if kind == "all-reduce" and fused and _is_sliced(instruction.name, within):
            kind = "reduce-scatter"
        passes = 2 if kind == "all-reduce" else 1
        return {kind: Traffic(passes * operand * (n - 1) // n, 1)}


def _summed(parts: Iterable[dict[str, Traffic]]) -> dict[str, Traffic]:
    total: dict[str, Traffic] = {}
    for part in parts:
        for kind, moved in part.items():
            total[kind] = total.get(kind, Traffic()) + moved
    return total


def _starts(computation: hlo.Computation) -> bool:
    return any('"AsyncCollectiveStart"' in i.attributes for i in computation.instructions.values())


def _channels(computation: hlo.Computation) -> set[str]:
    instructions = computation.instructions.values()
    channels = {_channel(i) for i in instructions if i.opcode.removesuffix("-start") in KINDS}
    return {channel for channel in channels if channel is not None}


def _channel(instruction: hlo.Instruction) -> str | None:
    match = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
    return match[1] if match else None


def _is_sliced(name: str, within: hlo.Computation) -> bool:
    for user in within.instructions.values():
        if name not in user.operands:
            continue
        if user.opcode == "dynamic-slice" and user.operands[0] == name:
            return True
        if user.opcode in _PASSED_ON and _is_sliced(user.name, within):
            return True
    return False


def _group_size(attributes: str) -> int | None:
    """Number of devices in a group; None if the attributes name no groups.

    Groups are written `{{0,1},{2,3}}`, `[2,2]<=[4]`, or `mesh['a'=2,'b'=2] {'a'}`.
    """
    match = _GROUPS.search(attributes)
    if not match:
        return None
    if match["list"] is not None:
        return len(match["list"].split(","))
    if match["iota"] is not None:
        return int(match["iota"])
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", match["sizes"]))
    axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", match["axes"])  # 'a':(1)2 is part of an axis
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
