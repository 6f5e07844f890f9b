"""The device: what it is, what runs on it, and the speeds that it reaches with the plainest programs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator_parts.setting import FULL, Setting, memory_limit
from lora_jax.costs import chips
from lora_jax.errors import InputError

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def description() -> dict[str, Any]:
    """Kind, number and memory of the devices; versions of what runs on them."""
    first = jax.devices()[0]
    chip = chips.by_device_kind(first.device_kind)
    versions = {package: _version(package) for package in _PACKAGES}
    return {
        "kind": first.device_kind,
        "platform": first.platform,
        "count": jax.device_count(),
        "chip": None if chip is None else chip.name,
        "peak_flops": None if chip is None else chip.peak_flops,
        "memory_limit": memory_limit(),
        "platform_version": getattr(first.client, "platform_version", None),
        "cpu_cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {package: version for package, version in versions.items() if version},
    }


def check(setting: Setting) -> None:
    """Raises InputError where the models are full and there are only CPUs."""
    if setting.size == FULL and jax.default_backend() == "cpu":
        raise InputError(
            "JAX sees no accelerator here, only CPUs, and models of full size would take hours: install "
            "jax[cuda12] or jax[tpu] and unset JAX_PLATFORMS, or ask for --size=small"
        )


def speeds(setting: Setting) -> None:
    """Products of matrices in bfloat16, and copies: what no train step can exceed."""
    side, megabytes = (256, 1) if setting.small else (8192, 1024)
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    long = jnp.zeros((megabytes * 2**20 // 4,), jnp.float32)
    times = 10
    # Each product needs the last one; a copy reads and writes.
    products = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, x: x @ b, a))
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda i, y: y + i, x))
    seconds = setting.timed(
        {
            "products": lambda: products(a, b).block_until_ready(),
            "copies": lambda: copies(long).block_until_ready(),
        }
    )
    median = {name: statistics.median(values) / times for name, values in seconds.items()}
    reached = 2 * side**3 / median["products"]
    chip = chips.by_device_kind(jax.devices()[0].device_kind)
    setting.report(
        matrix_side=side,
        matrix_flops_per_second=reached,
        of_peak=None if chip is None else reached / chip.peak("bfloat16"),
        bytes_per_second=2 * long.nbytes / median["copies"],
    )
