"""The parts in the order of their value: what is not reached is what matters least."""

from __future__ import annotations

from typing import NamedTuple

_HERE = "benchmarks.accelerator_parts"


class Part(NamedTuple):
    """Something to measure in a process of its own.

    Attributes:
      name: in the record and on the command line.
      target: module:function, which gets a `Setting`.
      estimate: seconds on one H100 with nothing compiled before; it is not begun with less left.
      argument: of the function; "" for none.
    """

    name: str
    target: str
    estimate: float
    argument: str = ""


def _step(name: str, estimate: float) -> Part:
    return Part(name.replace(" ", "-"), f"{_HERE}.train_steps:measure", estimate, name)


# The first one says what the device is; it always runs.
PARTS = (
    Part("device", f"{_HERE}.device:speeds", 20),
    Part("attention", f"{_HERE}.attention_kernels:measure", 40),
    Part("gradients", f"{_HERE}.correctness:gradients", 40),
    _step("llama-3-8b lora", 90),
    _step("roberta-large lora", 50),
    _step("roberta-large full", 50),
    _step("gpt2-medium lora", 45),
    _step("gpt2-medium full", 45),
    _step("llama-2-7b qlora", 80),
    Part("eight-runs", f"{_HERE}.sweep:measure", 80, "roberta-large runs"),
    Part("pool", f"{_HERE}.pool:measure", 70),
    Part("meshes", f"{_HERE}.correctness:meshes", 40),
    _step("llama-3-8b full", 90),
)
