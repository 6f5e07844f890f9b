"""How many runs fit a device's memory: two programs are compiled, the rest is a straight line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

from lora_jax.errors import InputError

_HEADROOM = 0.8  # of what is free: allocators fragment, and the host needs some for batches


def fitting(needed: Callable[[int], int], budget: int, step: int, wanted: int) -> int:
    """The most runs, a multiple of `step` and at least that, whose program stays in the budget.

    Everything that a run adds (factors, optimizer state, activations) it adds as often as there are
    runs, and the base once: memory is a straight line in the number of runs.

    Args:
      needed: bytes of a program with this many runs; called for one and two steps.
      budget: bytes.
      step: runs come in multiples of it.
      wanted: no more than this are of use (rounded up to the step).

    Raises:
      ValueError: not even one step fits.
    """
    most = -(-wanted // step) * step
    one = needed(step)
    if one > budget:
        raise InputError(
            f"a program with {step} run{'s' * (step > 1)} needs {one / 2**30:.2f} GiB of each device, "
            f"{budget / 2**30:.2f} GiB are free; choose a smaller batch, a mesh with more fsdp or model, "
            "or config.run.model.remat=full"
        )
    if most == step:
        return step
    slope = needed(2 * step) - one
    return min(most, (1 + (budget - one) // slope) * step) if slope > 0 else most


@runtime_checkable
class Device(Protocol):
    """What is asked of a `jax.Device` here."""

    def memory_stats(self) -> Mapping[str, int] | None:
        """Numbers of bytes by name, or None where the backend has none."""
        ...


def free_bytes(device: Device) -> int:
    """Bytes of a device that a program may take besides what lies there already.

    Of host memory, which several CPU devices share, the part of one of them.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_HEADROOM * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return int(_HEADROOM * _free_host_bytes() / jax.local_device_count())


def _free_host_bytes() -> int:
    """Free memory of this machine, or of the container that limits it."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    information = Path("/proc/meminfo")
    if information.exists():
        lines = dict(line.split(":") for line in information.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)
