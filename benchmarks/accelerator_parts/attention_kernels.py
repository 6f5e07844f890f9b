"""Every kernel of attention that the device has against XLA's in float32: outputs, gradients, seconds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.accelerator_parts.programs import custom_calls
from benchmarks.accelerator_parts.setting import Setting
from benchmarks.accelerator_parts.workloads import DTYPE
from lora_jax.models.attention.attend import KERNELS, PLATFORMS, Kernel, attend
from lora_jax.models.attention.spans import of_segments

_XLA: Kernel = "xla"
# bfloat16 has 8 significant bits: a rounding changes a value by at most 2^-9 of it. Outputs have seen two
# (weights, outputs), gradients at most eight (these, their gradients, products of both, the results), so
# the root mean square of an array's errors is below 2^-6 of its values unless something else is wrong.
TOLERANCE = 2.0**-6


def attention(q: Array, k: Array, v: Array, segments: Array, kernel: Kernel) -> Array:
    """Causal attention within segments by a kernel: the one place that knows how it is called."""
    return attend(q, k, v, of_segments(segments, causal=True), kernel=kernel)


def _with_gradients(kernel: Kernel) -> Callable[..., Any]:
    """Outputs, and gradients of their product with random numbers."""

    def run(q: Array, k: Array, v: Array, segments: Array, towards: Array) -> Any:
        function = functools.partial(attention, segments=segments, kernel=kernel)
        mixed, pull = jax.vjp(function, q, k, v)
        return {"outputs": mixed, **dict(zip(("q", "k", "v"), pull(towards), strict=True))}

    return run


def _finished(program: Callable[..., Any], inputs: tuple[Array, ...]) -> None:
    jax.block_until_ready(program(*inputs))


def difference(found: Array, expected: Array) -> float:
    """Root mean square of the differences, relative to that of the expected values."""
    wide = [jnp.asarray(x, jnp.float32) for x in (found, expected)]
    return float(jnp.linalg.norm(wide[0] - wide[1]) / jnp.linalg.norm(wide[1]))


def _inputs(small: bool) -> tuple[Array, ...]:
    """Queries, keys, values, segments of packed rows, and what the outputs are multiplied with."""
    rows, length, heads, shared, size = (2, 32, 2, 1, 16) if small else (2, 2048, 32, 8, 128)
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (heads, shared, shared, heads)
    q, k, v, towards = (
        jax.random.normal(key, (rows, length, count, size), DTYPE)
        for key, count in zip(keys, counts, strict=True)
    )
    # Examples of a third and of two thirds of a row.
    numbers = jnp.where(jnp.arange(length) < length // 3, 1, 2)
    return q, k, v, jnp.broadcast_to(numbers, (rows, length)), towards


def measure(setting: Setting) -> None:
    """The part. It fails at the end if a kernel was wrong, or did not run."""
    inputs = _inputs(setting.small)
    wide = tuple(
        x.astype("float32") if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs
    )
    with jax.default_matmul_precision("highest"):
        expected = jax.device_get(jax.jit(_with_gradients(_XLA))(*wide))
    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], object]] = {}
    setting.report(shape=inputs[0].shape, shared_heads=inputs[1].shape[2], tolerance=TOLERANCE)
    platform = jax.default_backend()
    for kernel in (name for name in KERNELS if PLATFORMS.get(name, platform) == platform):
        try:
            program = jax.jit(_with_gradients(kernel)).lower(*inputs).compile()
            result = program(*inputs)
            errors = {name: difference(result[name], expected[name]) for name in expected}
            found[kernel] = {
                "errors": errors,
                "right": max(errors.values()) <= TOLERANCE,
                "kernels": custom_calls(program),
            }
            calls[kernel] = functools.partial(_finished, program, inputs)
        except Exception as error:  # a kernel that a device lacks; the others are measured
            found[kernel] = {"right": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        setting.report(of_kernels=found)
    for kernel, values in setting.timed(calls).items():
        found[kernel]["seconds"] = statistics.median(values)
    setting.report(of_kernels=found)
    if wrong := [kernel for kernel, of in found.items() if not of["right"]]:
        raise AssertionError(f"wrong, or did not run: {', '.join(wrong)}; see of_kernels")
