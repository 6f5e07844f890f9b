"""What a compiled program needs of each device: memory and traffic, without running it."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from lora_jax.costs import collectives
from lora_jax.costs.chips import Chip, by_topology
from lora_jax.costs.collectives import Traffic

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Needs:
    """Of one device; bytes.

    Attributes:
      arguments: parameters, optimizer state and batch.
      temporaries: all else the program holds at its peak; outputs reuse donated arguments.
      peak: both.
      fits: whether that is in the device's memory.
      traffic: of the collectives, by kind; empty where the program does not fit.
      compile_seconds: on this machine.
    """

    arguments: int
    temporaries: int
    peak: int
    fits: bool
    traffic: dict[str, Traffic]
    compile_seconds: float

    @property
    def sent(self) -> int:
        """Bytes that a device sends in one step."""
        return sum(own.bytes for own in self.traffic.values())


def topology_devices(topology: str) -> list[Any]:
    """The devices of a TPU topology such as "v5p:4x4x4", to compile for; no TPU is needed.

    Raises:
      ImportError: libtpu is not installed.
      ValueError: no such topology.
    """
    chip = by_topology(topology)
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "compiling for TPUs needs the package libtpu (no TPU): pip install libtpu"
        ) from error
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        raise ValueError(f"topology {topology!r} is not one of {chip.name}: {error}") from error
    return list(found.devices)


def argument_bytes(arguments: Any) -> int:
    """Bytes of one device's parts of shapes (`jax.ShapeDtypeStruct`) with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arguments)
    )


def needs(function: Any, arguments: tuple[Any, ...], chip: Chip | None) -> Needs:
    """Compiles a program and reads what it needs.

    Args:
      function: made by `jax.jit`.
      arguments: shapes with shardings, over devices that are here or of a topology.
      chip: of the devices; None never says that something does not fit.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    own = argument_bytes(arguments)
    lowered = function.lower(*arguments)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # The text of some TPU programs cannot be had from the compiled object (libtpu 0.0.52).
        options: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            peak = _asked_for(str(error))
            if peak is None:
                raise
            spent = time.perf_counter() - begin
            return Needs(own, max(peak - own, 0), peak, False, {}, spent)
        spent = time.perf_counter() - begin
        texts = sorted(Path(folder).glob("*after_optimizations.txt"))
        traffic = collectives.traffic(texts[-1].read_text() if texts else compiled.as_text())
    memory = compiled.memory_analysis()
    extra = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + extra
    peak = memory.argument_size_in_bytes + temporaries
    fits = chip is None or peak <= chip.memory_bytes
    return Needs(memory.argument_size_in_bytes, temporaries, peak, fits, traffic, spent)


_OUT_OF_MEMORY = (  # both say the whole, arguments included
    re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
)


def _asked_for(message: str) -> int | None:
    """The memory that a program would have taken, from the compiler's out-of-memory message."""
    for pattern in _OUT_OF_MEMORY:
        if found := pattern.search(message):
            return int(float(found[1]) * _UNITS[found[2]])
    return None
