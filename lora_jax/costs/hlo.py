"""Reading a compiled XLA program's text (`compiled.as_text()`): instructions and loop lengths."""

from __future__ import annotations

import dataclasses
import math
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"(?:^|, )(body|condition|calls|to_apply|branch_computations|called_computations"
    r"|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME_VALUE = ("copy", "bitcast", "convert", "reshape")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      type: as printed, `bf16[8,128]{1,0}` or a tuple of such.
      opcode: `all-gather`, `while` and so on.
      operands: names of instructions; for a parameter its number, for a constant its value.
      attributes: what follows the operands.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self) -> dict[str, list[str]]:
        """Names of the computations that it calls, by the attribute that names them."""
        found = _CALLED.findall(self.attributes)
        return {key: re.findall(r"[\w.\-]+", names) for key, names in found}


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, and the name of the one that gives the result."""

    instructions: dict[str, Instruction]
    root: str

    def value(self, name: str) -> Instruction:
        """The instruction that a name stands for, through copies and conversions."""
        found = self.instructions[name]
        while found.opcode in _SAME_VALUE:
            found = self.instructions[found.operands[0]]
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: computations by name, the name of the entry, and how many devices run it."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """Reads a program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    name = root = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, instructions = header[2], {}
            entry = name if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            instructions[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
        elif line.startswith("}") and name:
            computations[name] = Computation(instructions, root)
            name = ""
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
    return Program(computations, entry, math.prod(map(int, counts)))


def _instruction(name: str, rest: str) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode, opening, _ = rest[end:].lstrip().partition("(")
    start = rest.index(opcode + opening, end) + len(opcode)
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop - 1]
    operands = re.findall(r"%([\w.\-]+)", inside) or [inside.strip()]
    return Instruction(name, rest[:end], opcode, tuple(operands), rest[stop:])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed, plus one."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


def size_bytes(type_text: str) -> int:
    """Bytes of a value of a printed type; tokens have none, four-bit values are packed."""
    total = 0
    for letters, bits, dimensions in _ARRAY.findall(type_text):
        width = 8 if letters == "pred" else int(bits or 0)
        values = math.prod(int(d) for d in re.findall(r"\d+", dimensions))
        total += -(-values * width // 8)
    return total


def trip_count(program: Program, loop: Instruction, around: Computation) -> int:
    """How often a while loop's body runs; 1 where the program's text does not tell.

    XLA's own note is taken where there is one (CPU, GPU). A TPU's program has none: there the count
    follows from the condition `counter < limit` and the counter's start and step, which are 0 and 1
    where they are no constants.

    Args:
      program: the whole.
      loop: the instruction.
      around: the computation that it is in.
    """
    if known := _TRIP_COUNT.search(loop.attributes):
        return int(known[1])
    called = loop.called()
    condition, body = (program.computations[called[key][0]] for key in ("condition", "body"))
    compared = _compared(program, condition)
    if compared is None:
        return 1
    counter, limit = compared
    if counter.opcode != "get-tuple-element":
        return 1
    start, step = None, None
    begun, finished = around.value(loop.operands[0]), body.value(body.root)
    if begun.opcode == "tuple":
        start = _constant(around.value(begun.operands[_index(counter)]))
        if limit.opcode == "get-tuple-element":  # the loop carries it
            limit = around.value(begun.operands[_index(limit)])
    if finished.opcode == "tuple":
        following = body.value(finished.operands[_index(counter)])
        if following.opcode == "add":
            added = [_constant(body.value(name)) for name in following.operands]
            step = next((value for value in added if value), None)
    stop = _constant(limit)
    return 1 if stop is None else max(0, -(-(stop - (start or 0)) // (step or 1)))


def _compared(program: Program, condition: Computation) -> tuple[Instruction, Instruction] | None:
    """What a condition of the form `counter < limit` compares, also where a fusion does it."""
    root = condition.value(condition.root)
    inner, compare = condition, root
    if root.opcode == "fusion":
        inner = program.computations[root.called()["calls"][0]]
        compare = inner.value(inner.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    sides = [inner.value(name) for name in compare.operands]
    counter, limit = (
        condition.value(root.operands[int(side.operands[0])])
        if side.opcode == "parameter" and inner is not condition
        else side
        for side in sides
    )
    return counter, limit


def _index(element: Instruction) -> int:
    found = re.search(r"index=(\d+)", element.attributes)
    assert found, element
    return int(found[1])


def _constant(instruction: Instruction) -> int | None:
    value = instruction.operands[0] if instruction.opcode == "constant" else "none"
    return int(value) if re.fullmatch(r"-?\d+", value) else None
