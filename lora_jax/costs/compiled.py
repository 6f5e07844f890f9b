"""Memory and traffic that a program needs on each device, found by compiling and not running it."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from lora_jax.costs import collectives
from lora_jax.costs.chips import Chip
from lora_jax.costs.collectives import Traffic

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@runtime_checkable
class Jitted(Protocol):
    """A function under `jax.jit`: it can be called, or lowered and compiled ahead."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        ...

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Traces the function for these arguments, arrays or shapes."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a program needs on one device; sizes in bytes.

    Attributes:
      arguments: parameters, optimizer state and batch.
      temporaries: all else that the program holds at its peak; outputs reuse donated arguments.
      peak: arguments and temporaries.
      fits: whether the peak is within the device's memory.
      traffic: of the collectives, by kind; empty if the program does not fit.
      compile_seconds: time that compiling took on this machine.
    """

    arguments: int
    temporaries: int
    peak: int
    fits: bool
    traffic: dict[str, Traffic]
    compile_seconds: float

    @property
    def sent(self) -> int:
        """Bytes that a device sends while the program runs once."""
        return sum(moved.bytes for moved in self.traffic.values())


def argument_bytes(arguments: PyTree) -> int:
    """Bytes that one device holds of a tree of shapes (`jax.ShapeDtypeStruct`) with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arguments)
    )


def needs(function: Jitted, arguments: tuple[PyTree, ...], chip: Chip | None) -> Needs:
    """Compiles a program and reads what it needs on each device.

    Args:
      function: a result of `jax.jit`.
      arguments: trees of shapes with shardings over devices of this machine or of a topology.
      chip: the kind of the devices; with None every program that compiles is said to fit.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    held = argument_bytes(arguments)
    lowered = function.lower(*arguments)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # The text of some TPU programs cannot be had from the compiled object (libtpu 0.0.52).
        dump: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        options = dump if _platform(arguments) == "tpu" else None
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            peak = asked_for(str(error))
            if peak is None:
                raise
            return Needs(
                arguments=held,
                temporaries=max(peak - held, 0),
                peak=peak,
                fits=False,
                traffic={},
                compile_seconds=time.perf_counter() - begin,
            )
        compile_seconds = time.perf_counter() - begin
        texts = sorted(Path(folder).glob("*after_optimizations.txt"))
        text = texts[-1].read_text() if texts else compiled.as_text()
    assert text is not None  # every compiler that JAX has knows it
    memory = of_compiled(compiled)
    peak = memory.arguments + memory.temporaries
    return Needs(
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        peak=peak,
        fits=chip is None or peak <= chip.memory_bytes,
        traffic=collectives.traffic(text),
        compile_seconds=compile_seconds,
    )


class Memory(NamedTuple):
    """Bytes of a compiled program on one device: its arguments, and all else that it holds at its peak."""

    arguments: int
    temporaries: int


def of_compiled(compiled: jax.stages.Compiled) -> Memory:
    """What a compiled program needs; outputs reuse donated arguments."""
    memory = compiled.memory_analysis()
    assert memory is not None  # every compiler that JAX has knows it
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Memory(memory.argument_size_in_bytes, memory.temp_size_in_bytes + extra)


def _platform(arguments: PyTree) -> str:
    """The platform of the devices that the arguments lie on."""
    first = jax.tree.leaves(arguments)[0]
    return str(next(iter(first.sharding.device_set)).platform)


_OUT_OF_MEMORY = (  # both figures include the arguments
    re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
)


def asked_for(message: str) -> int | None:
    """Bytes that a program asked for, from the compiler's out-of-memory message; None for others."""
    for pattern in _OUT_OF_MEMORY:
        if match := pattern.search(message):
            return int(float(match[1]) * _UNITS[match[2]])
    return None
