"""A train step compiled ahead, what its compiler predicts, and its steps with weights on the device."""

from __future__ import annotations

import re
import time
from typing import Any

import jax
from jaxtyping import PyTree

from benchmarks.abstract_steps import Step
from benchmarks.accelerator_parts import random_leaves
from lora_jax import partition
from lora_jax.costs import compiled

_TARGET = re.compile(r'custom_call_target="([^"]+)"')
STEPS = 4  # that are dispatched before one waits for them, as a training loop does


class DoesNotFit(Exception):
    """The program needs more than the device's memory; `needs` are bytes."""

    def __init__(self, needs: int, limit: int | None, what: str):
        of = "" if limit is None else f" of {limit:,}"
        super().__init__(f"does not fit: {what} {needs:,}{of} bytes")


def shapes(tree: PyTree) -> PyTree:
    """The shapes of a tree of arrays or shapes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def custom_calls(executable: jax.stages.Compiled) -> list[str]:
    """Names of what a compiled program calls besides XLA's own code; none where its text cannot be had."""
    try:
        text = executable.as_text() or ""
    except jax.errors.JaxRuntimeError:
        return []
    return sorted(set(_TARGET.findall(text)))


class Program:
    """One step, compiled.

    Attributes:
      made: the step in shapes.
      predicted: bytes of arguments and temporaries, and their sum.
      compile_seconds: tracing included.
    """

    def __init__(self, made: Step, limit: int | None):
        """Compiles it.

        Raises:
          DoesNotFit: the device has less memory than the program would take.
        """
        self.made = made
        arguments = tuple(shapes(argument) for argument in made.arguments)
        held = partition.size_bytes(arguments)
        if limit is not None and held > limit:
            raise DoesNotFit(held, limit, "weights, state and batch alone take")
        begin = time.perf_counter()
        try:
            self.executable = made.train.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            needs = compiled.asked_for(str(error))
            if needs is None:
                raise
            raise DoesNotFit(needs, limit, "the compiler asks for") from error
        self.compile_seconds = time.perf_counter() - begin
        memory = compiled.of_compiled(self.executable)
        self.predicted = {**memory._asdict(), "peak": sum(memory)}
        if limit is not None and self.predicted["peak"] > limit:
            raise DoesNotFit(self.predicted["peak"], limit, "the compiler predicts a peak of")

    def kernels(self) -> list[str]:
        """The libraries and kernels that the program calls, by XLA's names of custom calls."""
        return custom_calls(self.executable)

    def start(self, frozen: dict[str, Any], *others: Any) -> None:
        """Puts everything on the device.

        Args:
          frozen: leaves of the base.
          others: the arguments of the step that are neither leaves nor the optimizer's state, in order.
        """
        trainable = random_leaves.leaves(self.made.arguments[0], seed=1)
        state = jax.jit(self.made.initial)(trainable)
        self.moving = (trainable, state)
        self.metrics: dict[str, Any] = {}
        placed = iter(jax.device_put(others))
        self.fixed = [
            frozen if isinstance(argument, dict) else next(placed)
            for argument in self.made.arguments[2:]
        ]

    def steps(self) -> None:
        """Takes `STEPS` steps."""
        for _ in range(STEPS):
            trainable, state, *_, self.metrics = self.executable(*self.moving, *self.fixed)
            self.moving = (trainable, state)
        jax.block_until_ready(self.metrics)

    def outcome(self) -> dict[str, Any]:
        """The last loss (of every run), and whether everything is finite."""
        return {
            "loss": self.metrics["loss"].tolist(),
            "finite": bool(self.metrics["finite"].all()),
        }
