"""Reads the text of a compiled XLA program (`compiled.as_text()`): instructions, loop lengths."""

from __future__ import annotations

import dataclasses
import math
import re

from lora_jax.errors import InputError

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
# Attributes of a kernel can have line breaks, and then "}}" begins a line within a computation.
_END = re.compile(r"^\}(,|$)")
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
      type: as printed: `bf16[8,128]{1,0}`, or several in parentheses for a tuple.
      opcode: `all-gather`, `while` and so on.
      operands: names of instructions; for a parameter its number, for a constant its value.
      attributes: the text after the operands.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self) -> dict[str, list[str]]:
        """Names of the computations that the instruction calls, by attribute (`body`, `calls`)."""
        called = _CALLED.findall(self.attributes)
        return {key: re.findall(r"[\w.\-]+", names) for key, names in called}


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, and the name of the one that computes the result."""

    instructions: dict[str, Instruction]
    root: str

    def value(self, name: str) -> Instruction:
        """The instruction that computes a value, which copies and conversions may have renamed."""
        instruction = self.instructions[name]
        while instruction.opcode in _SAME_VALUE:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, the name of the first to run, and the number of devices that run it."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """Reads the text of a program.

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
        elif match := _INSTRUCTION.match(line):
            instructions[match[2]] = _instruction(match[2], match[3])
            root = match[2] if match[1] else root
        elif name and _END.match(line):
            computations[name] = Computation(instructions, root)
            name = ""
    if not entry:
        raise InputError("the text is not that of a compiled program: it has no ENTRY computation")
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
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise InputError(f"unbalanced parentheses in {text[:200]!r}")


def size_bytes(type_text: str) -> int:
    """Bytes of a value of a printed type. A token takes none; two four-bit values take one."""
    total = 0
    for letters, bits, dimensions in _ARRAY.findall(type_text):
        width = 8 if letters == "pred" else int(bits or 0)
        values = math.prod(int(d) for d in re.findall(r"\d+", dimensions))
        total += -(-values * width // 8)
    return total


def trip_count(program: Program, loop: Instruction, around: Computation) -> int:
    """How often the body of a while loop runs; 1 where the program's text does not say it.

    CPU and GPU programs carry XLA's own count. In a TPU program the count follows from the condition
    `counter < limit` and from the counter's start and step, which are taken as 0 and 1 where they
    are not constants.

    Args:
      program: the whole program.
      loop: the instruction of the loop.
      around: the computation that contains it.
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
    """Counter and limit of a condition `counter < limit`; None for a condition of another form."""
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
    match = re.search(r"index=(\d+)", element.attributes)
    assert match, element
    return int(match[1])


def _constant(instruction: Instruction) -> int | None:
    value = instruction.operands[0] if instruction.opcode == "constant" else "none"
    return int(value) if re.fullmatch(r"-?\d+", value) else None
