"""What a part is given: the size of its models, its time, and a place for what it has found so far."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks import timing
from lora_jax.costs import chips
from lora_jax.files import write_json

FULL, SMALL = "full", "small"


@dataclasses.dataclass
class Setting:
    """Of one part.

    Attributes:
      size: FULL or SMALL, which is the same code with tiny models.
      until: time.monotonic() at which the part must be done.
      seconds: for every timed loop.
      output: JSON file of what was found; written after every `report`.
      found: what is in it.
    """

    size: str
    until: float
    seconds: float
    output: Path
    found: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def small(self) -> bool:
        """Whether the models are tiny."""
        return self.size == SMALL

    def report(self, **found: Any) -> None:
        """Adds to what was found; a part that is killed later on leaves it."""
        self.found |= found
        write_json(self.output, self.found)

    def timed(self, contenders: timing.Contenders, most: int = 50) -> dict[str, list[float]]:
        """Seconds of interleaved rounds, after an untimed one, for the time of a loop."""
        first: list[float] = []

        def enough() -> bool:
            now = time.monotonic()
            first.append(now)
            return now - first[0] >= self.seconds * len(contenders) or now >= self.until - 2

        return timing.interleaved(contenders, most, enough)


def memory_limit() -> int | None:
    """Bytes that programs can have on the first device, if it is known."""
    device = jax.local_devices()[0]
    stats, chip = device.memory_stats() or {}, chips.by_device_kind(device.device_kind)
    limit = stats.get("bytes_limit")
    return limit or (None if chip is None else chip.memory_bytes)


def measured_peak() -> int | None:
    """Peak bytes of this process on the first device, if it counts them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def out_of_memory(error: BaseException) -> bool:
    """Whether a compiler or a device says so."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
