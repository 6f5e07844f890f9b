"""Classification of texts that come one by one: what waits is packed into rows, whatever its adapter."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from lora_jax.checks import Integer, integer
from lora_jax.data.batch import Inputs
from lora_jax.data.packing import Shape
from lora_jax.errors import InputError
from lora_jax.partition import Params
from lora_jax.pool.pool import AdapterPool
from lora_jax.pool.routes import packed_slots
from lora_jax.pool.routing import route
from lora_jax.ranges import Number, check
from lora_jax.serving import shapes, worker
from lora_jax.serving.adapters import Version
from lora_jax.serving.examples import Example, Ticket, packed

_WINDOW = 0.002
_LOOKED_AT = 4096  # of those that wait, to make one batch


@dataclasses.dataclass
class Counts(worker.Counts):
    """What was done so far.

    Attributes:
      examples: that were taken.
      batches: that were run.
      answered: examples in them.
      tokens: of these examples.
      places: for tokens in all batches; those without one are padding.
    """

    examples: int = 0
    batches: int = 0
    answered: int = 0
    tokens: int = 0
    places: int = 0


class ClassifierEngine(worker.Worker[Ticket]):
    """Outputs of a classifier for the adapters of a pool, each with a head of its own.

        engine = ClassifierEngine(pool)
        tickets = engine.submit([Example(tokens, types)], "mrpc", tell)   # called with each at its end

    One thread owns the device: it packs those that wait into rows of one of a few shapes, the first ones
    first, and runs them together. An idle thread waits a moment for others after the first one.

    Attributes:
      counts: what it has done so far.
      room: tokens of the longest example.
    """

    counts: Counts

    def __init__(
        self,
        pool: AdapterPool[Any],
        *,
        rows: Integer = 8,
        room: Integer = 512,
        waiting: Integer = 4096,
        window: float = _WINDOW,
    ):
        """Starts the thread.

        Args:
          pool: of a classifier, see `AdapterPool`.
          rows: of the largest batch, of 128 tokens each; as many tokens if rows must be longer.
          room: tokens of the longest example; no more than the model has positions.
          waiting: examples that may wait.
          window: seconds that an idle thread waits for others.

        Raises:
          InputError: a number is out of range.
        """
        super().__init__(pool, waiting, check("window", window, Number(least=0)))
        self.counts = Counts()
        longest: int = pool.base.config.max_length  # type: ignore[attr-defined]
        self.room = min(integer("room", room), longest)
        self._menu = shapes.shapes(integer("rows", rows, most=4096), self.room)
        jit = jax.jit if pool.placement is None else pool.placement.jit
        self._program: Callable[..., Array] = jit(self._outputs)
        self._thread.start()

    def prepare(self, longest: int) -> None:
        """Compiles the programs for examples of up to so many tokens; others are when they are needed."""
        enough = min((n for _, n in self._menu if n >= longest), default=self.room)
        with self._lock:  # an adapter's slot is written, too
            some = next((version.name for version in self._versions.values()), None)
            ready = self.pool.ready([some])
            for shape in self._menu:
                if shape[1] <= enough:
                    empty = packed([Example(np.zeros(1, np.int32), np.zeros(1, np.int32))], shape)
                    numbers = np.zeros(shapes.slots(shape), np.int32)
                    self._program(*ready[:2], numbers, *empty).block_until_ready()

    def submit(
        self,
        examples: Sequence[Example],
        adapter: str | Version | None,
        tell: Callable[[Ticket], None],
        seconds: float | None = None,
    ) -> list[Ticket]:
        """Takes examples, all of them or none.

        Args:
          examples: of one request.
          adapter: name of an adapter, or a version from `using`; None for the base.
          tell: called by the engine's thread when one of them has ended; it must return at once.
          seconds: until they are given up; None for no limit.

        Raises:
          InputError: the adapter is unknown, an example is too long, or there are more than may wait.
          QueueFullError: too many wait.
          ClosedError: the engine is closing.
        """
        if len(examples) > self.most_waiting:
            raise InputError(
                f"{len(examples):,} texts are more than the {self.most_waiting:,} that may wait here; "
                "divide the request"
            )
        if odd := [e for e in examples if not 0 < len(e.tokens) <= self.room]:
            raise InputError(
                f"a text has {len(odd[0].tokens)} tokens, allowed are 1 to {self.room}"
            )
        with self.using(adapter) as version:
            taken = [Ticket(example, version, seconds, tell) for example in examples]
            with self._lock:
                self._take(taken)
                self.counts.examples += len(taken)
        return taken

    def _step(self) -> None:
        with self._lock:
            self._drop_overdue()
            batch, shape = self._next()
            if not batch:
                return
            slots, frozen, numbers = self.pool.ready([t.version.name for t in batch])
        inputs, rows, columns = packed([t.example for t in batch], shape)
        numbers = np.pad(numbers, (0, len(rows) - len(numbers)), mode="edge")
        outputs = np.asarray(self._program(slots, frozen, numbers, inputs, rows, columns))
        tokens = sum(len(t.example.tokens) for t in batch)
        with self._lock:
            self._running = []
            self.counts.batches += 1
            self.counts.answered += len(batch)
            self.counts.tokens += tokens
            self.counts.places += shape[0] * shape[1]
        for ticket, own in zip(batch, outputs, strict=False):
            self._finish(ticket, own[: ticket.version.outputs])

    def _next(self) -> tuple[list[Ticket], Shape]:
        """Takes the first of those that wait, as many as fit a batch and its adapters the pool."""
        queue, names = self._queue, set[str | None]()
        lengths: list[int] = []
        for ticket in itertools.islice(queue, _LOOKED_AT):
            names.add(ticket.version.name)
            if len(names - {None}) > self.pool.capacity:
                break
            lengths.append(len(ticket.example.tokens))
        if not lengths:
            return [], (0, 0)
        count, shape = shapes.first_batch(lengths, self._menu)
        batch = [queue.popleft() for _ in range(count)]
        broken = self._broken({ticket.version.name for ticket in batch})
        for ticket in batch:
            if (error := broken.get(ticket.version.name)) is not None:
                self._end(ticket, "error", error)
        batch = [ticket for ticket in batch if ticket.version.name not in broken]
        self._running = [*batch]
        return batch, shape

    def _broken(self, names: set[str | None]) -> dict[str | None, str]:
        """What is wrong with adapters that cannot come to the device: their folders are gone."""
        errors: dict[str | None, str] = {}
        in_use = [name for name in names if name is not None]
        for name in names:
            try:
                self.pool.slots_of([name], in_use)
            except (ValueError, OSError) as error:
                errors[name] = str(error)
        return errors

    def _finish(self, ticket: Ticket, outputs: Float[np.ndarray, " outputs"]) -> None:
        if np.isfinite(outputs).all():
            ticket.outputs = outputs
            self._end(ticket, "done")
        else:
            self._end(ticket, "error", "the adapter's outputs for this text are not finite numbers")

    def _outputs(
        self, slots: Params, frozen: Params, numbers: Array, inputs: Inputs, rows: Array, columns: Array
    ) -> Array:  # fmt: skip
        model = self.pool.model(slots, frozen)
        route(model, packed_slots(inputs.segments, rows, columns, numbers), numbers)
        outputs: Array = model(inputs, rows, columns)  # type: ignore[operator]
        return outputs
