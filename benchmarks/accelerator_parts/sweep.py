"""Eight runs of a sweep in one program, against one run after another."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import abstract_steps, timing
from benchmarks.accelerator_parts import random_leaves, train_steps
from benchmarks.accelerator_parts.programs import STEPS, Program
from benchmarks.accelerator_parts.setting import Setting, measured_peak, memory_limit
from benchmarks.accelerator_parts.workloads import DTYPE, Try, key, workload

RUNS = 8


def measure(setting: Setting, name: str) -> None:
    """The part of a workload."""
    of = workload(name, setting.small)
    setting.report(method=str(of.method), length=of.length, runs=RUNS, anchor=of.anchor or None)

    def at(one: Try) -> None:
        batches = [of.batch(one, seed) for seed in range(RUNS)]
        batch: Any = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        limit = memory_limit()
        several = Program(
            abstract_steps.make_runs(of.model(one), of.method, of.loss(), batch, RUNS, DTYPE), limit
        )
        alone = Program(train_steps.made(of, one), limit)
        setting.report(
            compile_seconds=several.compile_seconds,
            compile_seconds_alone=alone.compile_seconds,
            predicted=several.predicted,
            predicted_alone=alone.predicted,
        )
        counted = RUNS * train_steps.model_flops(train_steps.made(of, one))
        frozen = random_leaves.leaves(alone.made.arguments[2])
        alone.start(frozen, batches[0], key())
        values = several.made.arguments[2]
        several.start(frozen, values, batch, jax.random.split(key(), RUNS), jnp.uint32(0))
        seconds = setting.timed({"alone": alone.steps, "several": several.steps})
        ratio = timing.ratio(seconds, "alone", "several")
        each = statistics.median(seconds["several"]) / STEPS
        setting.report(
            fits=True,
            **train_steps.figures(each, RUNS * one.rows * of.length, counted),
            step_seconds_alone=statistics.median(seconds["alone"]) / STEPS,
            # How many times as fast the eight are as one program.
            speedup={key: RUNS * value for key, value in ratio.items()},
            seconds_of_rounds=seconds,
            measured={"peak": measured_peak()},
            **several.outcome(),
        )

    train_steps.first_that_runs(setting, of.tries, at)
