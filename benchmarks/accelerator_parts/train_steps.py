"""One train step of a workload: seconds, tokens a second, MFU, and memory beside the prediction."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import abstract_steps
from benchmarks.accelerator_parts import random_leaves
from benchmarks.accelerator_parts.programs import STEPS, DoesNotFit, Program
from benchmarks.accelerator_parts.setting import (
    Setting,
    measured_peak,
    memory_limit,
    out_of_memory,
)
from benchmarks.accelerator_parts.workloads import DTYPE, Try, Workload, key, workload
from lora_jax.costs import chips, flops


def made(of: Workload, one: Try) -> abstract_steps.Step:
    """The step in shapes."""
    return abstract_steps.make(of.model(one), of.method, of.loss(), of.batch(one), DTYPE)


def model_flops(step: abstract_steps.Step) -> int:
    """FLOPs of the products that a step needs."""
    trainable, _, *rest = step.arguments
    return flops.training(step.objective, trainable, *rest)


def figures(step_seconds: float, tokens: int, step_flops: int) -> dict[str, Any]:
    """What follows from the time of a step on one device."""
    chip = chips.by_device_kind(jax.devices()[0].device_kind)
    return {
        "step_seconds": step_seconds,
        "tokens_per_second": tokens / step_seconds,
        "flops": step_flops,
        "flops_per_token": step_flops / tokens,
        "flops_per_second": step_flops / step_seconds,
        # Of all products, those of masked scores too; None where the chip's peak is not known.
        "mfu": chips.mfu(step_flops, step_seconds, 1, chip),
    }


def first_that_runs(
    setting: Setting, tries: tuple[Try, ...], measure: Callable[[Try], None]
) -> None:
    """Measures the first try that fits the memory and runs, and reports what became of those before.

    After an error that is not one of memory the tries with the same attention are left out: on the day, a
    kernel that does not run should not cost the figure.

    Args:
      setting: of the part.
      tries: in order.
      measure: function of one of them, which raises `DoesNotFit` or an error of memory where it does not.

    Raises:
      Exception: the last error that is not one of memory, if nothing runs.
    """
    refused: list[dict[str, Any]] = []
    broken: dict[str, Exception] = {}
    for one in tries:
        if one.attention in broken:
            continue
        setting.report(**one._asdict())
        try:
            measure(one)
            return
        except Exception as error:
            if not (isinstance(error, DoesNotFit) or out_of_memory(error)):
                broken[one.attention] = error.with_traceback(None)
            refused.append({**one._asdict(), "why": f"{type(error).__name__}: {error}"[:1000]})
        setting.report(refused=refused)
        gc.collect()  # arrays that only the error held
    if broken:
        raise next(reversed(broken.values()))
    setting.report(fits=False)


def measure(setting: Setting, name: str) -> None:
    """The part of a workload."""
    of = workload(name, setting.small)
    setting.report(
        method=str(of.method),
        length=of.length,
        base_format=of.base_format,
        anchor=of.anchor or None,
    )

    def at(one: Try) -> None:
        program = Program(made(of, one), memory_limit())
        setting.report(
            compile_seconds=program.compile_seconds,
            predicted=program.predicted,
            kernels=program.kernels(),
        )
        counted = model_flops(program.made)
        program.start(random_leaves.leaves(program.made.arguments[2]), of.batch(one), key())
        seconds = setting.timed({"steps": program.steps})["steps"]
        each = statistics.median(seconds) / STEPS
        setting.report(
            fits=True,
            **figures(each, one.rows * of.length, counted),
            steps=STEPS * len(seconds),
            seconds_of_rounds=seconds,
            measured={"peak": measured_peak()},
            **program.outcome(),
        )

    first_that_runs(setting, of.tries, at)
