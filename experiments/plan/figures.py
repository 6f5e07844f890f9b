"""What one compiled train step needs of each device of a TPU topology."""

from __future__ import annotations

import dataclasses

from lora_jax.costs import chips
from lora_jax.sharding.mesh import RUN


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFigures:
    """The figures of one train step, of a run alone or of a program of several runs.

    Attributes:
      topology, devices: the slice, and its number of devices.
      mesh: size of each axis; the axis run only for a sweep's program.
      method: as text.
      rows: token rows of a run's batch.
      tokens: of a step: of the batches of all runs.
      trainable, total: numbers of parameters, of all runs; total has the base once.
      arguments, temporaries, peak: bytes per device, see `compiled.Needs`.
      fits: whether the peak is within the chip's memory.
      traffic: bytes that a device sends in a step, by kind of collective.
      flops: of a step, all devices and runs together.
      compute_seconds, link_seconds: what the products take at the chip's peak, and the traffic at its
        links' peak: a step takes at least the longer of the two.
      compile_seconds: on this machine.
      runs: of the program; 1 is the step of a run alone.
      frozen: bytes of the arguments per device that no run changes; None in files of before.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    method: str
    rows: int
    tokens: int
    trainable: int
    total: int
    arguments: int
    temporaries: int
    peak: int
    fits: bool
    traffic: dict[str, int]
    flops: int
    compute_seconds: float
    link_seconds: float
    compile_seconds: float
    runs: int = 1
    frozen: int | None = None

    @property
    def bound(self) -> float:
        """Tokens per second that the slice cannot exceed, by products and links."""
        return self.tokens / max(self.compute_seconds, self.link_seconds)

    @property
    def serial(self) -> float:
        """Tokens per second that the slice cannot exceed if links wait for products."""
        return self.tokens / (self.compute_seconds + self.link_seconds)

    @property
    def runs_of_device(self) -> int:
        """Runs whose factors a device holds (its part of them)."""
        return self.runs // self.mesh.get(RUN, 1)

    @property
    def reading_seconds(self) -> float:
        """Seconds to read the arguments once at the peak of the chip's memory."""
        return self.arguments / chips.by_topology(self.topology).memory_bandwidth
