"""The clock of a run: what it counts, and how far the device may be behind the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax.typing import ArrayLike

from lora_jax.data.counts import Counts
from lora_jax.training.progress import Progress

_Item = TypeVar("_Item")


class Clock:
    """Counts steps, tokens and seconds; lets the device run at most one step behind the host."""

    def __init__(
        self,
        progress: Progress,
        count: Callable[[Any], Counts],
        flops: Callable[[Any], int],
    ):
        """Starts to count into `progress`.

        Args:
          progress: changed in place.
          count: what a batch adds, see `Batches.count`.
          flops: of a step with a batch; called once for every shape.
        """
        self._progress = progress
        self._count = count
        self._flops = flops
        self._flops_of_shape: dict[Hashable, int] = {}
        self._pending: ArrayLike | None = None
        self._mark = 0.0

    def start(self) -> None:
        """Before the first batch of an epoch."""
        self._mark = time.perf_counter()

    def waiting(self, stream: Iterable[_Item]) -> Iterator[_Item]:
        """Iterates over a stream of batches, and counts the time until each of them is there."""
        source = iter(stream)
        while True:
            begin = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self._progress.waiting_seconds += time.perf_counter() - begin
            yield item

    def tick(self, batch: Any, loss: ArrayLike) -> None:
        """After the step on a batch was sent to the device."""
        progress, counts = self._progress, self._count(batch)
        progress.step += 1
        progress.examples += counts.examples
        progress.tokens += counts.tokens
        progress.slots += counts.slots
        new = counts.shape not in self._flops_of_shape
        if new:
            self._flops_of_shape[counts.shape] = self._flops(batch)
        progress.flops += self._flops_of_shape[counts.shape]
        jax.block_until_ready(loss if new else self._pending)
        self._pending = loss
        spent = self._lap()
        progress.compile_seconds += spent if new else 0.0

    def stop(self) -> None:
        """After the last batch of an epoch."""
        jax.block_until_ready(self._pending)
        self._lap()

    def _lap(self) -> float:
        now = time.perf_counter()
        spent, self._mark = now - self._mark, now
        self._progress.seconds += spent
        return spent
